"""The web page of ``alignvlm demo``: drop a page, ask, and see what ALIGN reads.

Everything the page shows comes from this process: no font, script or statistic is fetched from, or
sent to, anywhere else.
"""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..data.synthetic.render import RenderSpec, render_page
from ..documents.opening import SUFFIXES, load_pages
from ..errors import AlignVLMError, DataError
from ..inference.ask import Answer, load_model
from .desk import Desk, OpenDocument
from .overlay import PageView, halvings

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr

MAX_UPLOAD = "32mb"
MAX_PIXELS = 40_000_000
KEEP_SECONDS = 3600
"""Uploads older than this, and documents nobody touched for so long, are forgotten."""
THIS_PAGE, ALL_PAGES = "this page", "all pages"
EXAMPLE = RenderSpec(layout="form", font_px=(28, 28), fonts=("DejaVuSans",))
INTRO = "Drop a page, ask a question, and see which words each part of the page is turned into."


def _notice(text: str, *, error: bool = False) -> str:
    """One line, for the eye and for screen readers."""
    kind, role = ("notice error", "alert") if error else ("notice", "status")
    return f'<p class="{kind}" role="{role}">{html.escape(" ".join(text.split()))}</p>'


class WebPage:
    """The page: components, and what happens when they are used.

    Args:
        desk: the model.
        name: of the model, as shown.
        max_pages: of a document; the rest is left out.
    """

    def __init__(self, desk: Desk, name: str, max_pages: int) -> None:
        self.desk, self.name, self.max_pages = desk, name, max_pages

    def open_file(self, path: str, sigma: float, halved: int) -> Iterator[tuple]:
        """A dropped file."""
        file = Path(path)
        try:
            images = load_pages(file, max_pages=self.max_pages + 1, max_pixels=MAX_PIXELS)
        except DataError as error:
            text = str(error).replace(str(file), file.name)
            yield (None, *self._opened(None), None, _notice(text, error=True))
            return
        more = len(images) > self.max_pages
        document = OpenDocument(file.name, [PageView(image) for image in images[: self.max_pages]])
        note = f"{file.name}: {len(document.pages)} page(s)"
        if more:
            note = f"{file.name} has more pages; these are the first {self.max_pages}"
        yield from self._show(document, note, sigma, halved)

    def open_example(self, seed: int, sigma: float, halved: int) -> Iterator[tuple]:
        """A form made here, with a question about it."""
        made = render_page(EXAMPLE, seed)
        document = OpenDocument("example page", [PageView(made.image)])
        question = made.facts[0].question
        for shown in self._show(document, "A form made up here, to try out", sigma, halved):
            yield (*shown, seed + 1, None, question)

    def _show(
        self, document: OpenDocument, note: str, sigma: float, halved: int
    ) -> Iterator[tuple[Any, ...]]:
        yield (document, *self._opened(document), None, _notice("Reading the page …"))
        drawing, problem = self.read(document, sigma, halved)
        yield (document, *self._opened(document), drawing, problem or _notice(note))

    def _opened(self, document: OpenDocument | None) -> tuple:
        """Page selector, scope, and two empty answers."""
        pages = 1 if document is None else len(document.pages)
        several = pages > 1
        selector = gr.update(maximum=max(2, pages), value=1, visible=several)
        return selector, gr.update(value=THIS_PAGE, visible=several), "", "", ""

    def close(self) -> tuple:
        """The file was taken away."""
        return (None, *self._opened(None), None, "")

    def turn_to(
        self, document: OpenDocument | None, number: int, sigma: float, halved: int
    ) -> tuple[Any, str]:
        """Another page of the document."""
        if document is not None:
            document.current = min(max(int(number), 1), len(document.pages)) - 1
        return self.read(document, sigma, halved)

    def read(self, document: OpenDocument | None, sigma: float, halved: int) -> tuple[Any, str]:
        """The drawing for the page shown, and what went wrong."""
        if document is None or not self.desk.ids:
            return None, ""
        try:
            return self.desk.overlay(document.page, sigma, halved), ""
        except AlignVLMError as error:
            return None, _notice(str(error), error=True)

    def answer(
        self,
        document: OpenDocument | None,
        question: str,
        scope: str,
        sigma: float,
        halved: int,
    ) -> Iterator[tuple]:
        """Stream the answer, then the one under noise: answer, noisy answer, line, Stop button."""
        idle, busy = gr.update(interactive=False), gr.update(interactive=True)
        if document is None or not question.strip():
            missing = "Drop a page first, or take the example page." if document is None else ""
            yield "", "", _notice(missing or "Write a question first.", error=True), idle
            return
        document.stop.clear()
        said, lines = ["", ""], []
        try:
            for place, noise in enumerate([0.0, sigma] if sigma else [0.0]):
                yield (*said, _notice("Thinking …"), busy)
                everything = scope == ALL_PAGES
                for part in self.desk.stream(document, question, everything, noise, halved):
                    if isinstance(part, Answer):
                        said[place] = part.text or "(no answer)"
                        lines.append(_told(part))
                    else:
                        said[place] = part
                        yield (*said, _notice("Answering …" if part else "Thinking …"), busy)
                if document.stop.is_set():
                    lines.append("stopped")
                    break
        except AlignVLMError as error:
            yield (*said, _notice(str(error), error=True), idle)
            return
        yield (*said, _notice("; ".join(lines)), idle)

    def build(self) -> gr.Blocks:
        """The page, not yet launched."""
        with gr.Blocks(
            title="alignvlm demo",
            analytics_enabled=False,
            delete_cache=(KEEP_SECONDS, KEEP_SECONDS),
        ) as blocks:
            title = f"<h1>alignvlm</h1><p>{INTRO}</p><p class='model'>{html.escape(self.name)}</p>"
            gr.HTML(title, elem_id="title")
            ui = self._components()
            self._wire(ui)
        return blocks.queue(api_open=False, max_size=32)

    def _components(self) -> SimpleNamespace:
        ui = SimpleNamespace()
        ui.document = gr.State(None, time_to_live=KEEP_SECONDS)
        ui.seed = gr.State(0)
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=300):
                ui.file = gr.File(
                    label="Page or PDF", file_types=list(SUFFIXES), height=150, elem_id="file"
                )
                ui.example = gr.Button("Example page", elem_id="example")
                ui.number = gr.Slider(1, 2, 1, step=1, label="Page", visible=False, elem_id="page")
                ui.notice = gr.HTML("", elem_id="notice")
            with gr.Column(min_width=300):
                ui.question = gr.Textbox(
                    label="Question",
                    placeholder="What is the total? (Enter asks)",
                    max_length=2000,
                    elem_id="question",
                )
                ui.scope = gr.Radio(
                    [THIS_PAGE, ALL_PAGES],
                    value=THIS_PAGE,
                    label="Ask about",
                    visible=False,
                    elem_id="scope",
                )
                with gr.Row(elem_id="buttons"):
                    ui.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
                    ui.stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=100)
                ui.clean = gr.Textbox(
                    label="Answer", lines=2, interactive=False, elem_id="answer", buttons=["copy"]
                )
                ui.noisy = gr.Textbox(
                    label="Answer under noise",
                    lines=2,
                    interactive=False,
                    placeholder="Ask again to compare",
                    visible=False,
                    elem_id="noisy-answer",
                )
                ui.told = gr.HTML("", elem_id="told")
        self._reading(ui)
        return ui

    def _reading(self, ui: SimpleNamespace) -> None:
        """Sliders and drawing; hidden for a connector that reads no words."""
        ids, readable = self.desk.ids, bool(self.desk.ids)
        steps = halvings(ids) if readable else 0
        gr.HTML("<h2>What ALIGN reads</h2>", visible=readable, elem_id="reading-title")
        with gr.Row(visible=readable, elem_id="sliders"):
            ui.sigma = gr.Slider(
                0,
                5,
                0,
                step=0.1,
                label="Noise σ",
                info="Gaussian noise on the vision features; the paper: 3.",
                min_width=260,
                elem_id="sigma",
            )
            ui.halved = gr.Slider(
                0,
                max(1, steps),
                0,
                step=1,
                label="Vocabulary, halved",
                info=f"0: all {ids:,} ids; each step keeps the half used most here.",
                interactive=steps > 0,
                min_width=260,
                elem_id="halved",
            )
        ui.drawing = gr.HTML(
            None,
            html_template='<div class="reading"></div>',
            js_on_load=_file("overlay.js"),
            apply_default_css=False,
            visible=readable,
            elem_id="drawing",
        )

    def _wire(self, ui: SimpleNamespace) -> None:
        # one model, and PDFium is not thread-safe: these take turns
        turns: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        knobs = [ui.sigma, ui.halved]
        answers = [ui.clean, ui.noisy, ui.told]
        opened = [ui.document, ui.number, ui.scope, *answers, ui.drawing, ui.notice]
        ui.file.upload(self.open_file, [ui.file, *knobs], opened, **turns)
        ui.file.clear(self.close, None, opened, **turns)
        ui.example.click(
            self.open_example,
            [ui.seed, *knobs],
            [*opened, ui.seed, ui.file, ui.question],
            **turns,
        )
        drawn = [ui.drawing, ui.notice]
        last: dict[str, Any] = {
            **turns,
            "trigger_mode": "always_last",
            "show_progress": "minimal",
            "show_progress_on": ui.drawing,
        }
        ui.number.input(self.turn_to, [ui.document, ui.number, *knobs], drawn, **last)
        for knob in knobs:
            knob.input(self.read, [ui.document, *knobs], drawn, **last)
        at_once: dict[str, Any] = {
            "queue": False,
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        ui.sigma.input(
            lambda sigma: gr.update(visible=sigma > 0, value=""), ui.sigma, ui.noisy, **at_once
        )
        gr.on(
            [ui.ask.click, ui.question.submit],
            self.answer,
            [ui.document, ui.question, ui.scope, *knobs],
            [*answers, ui.stop],
            trigger_mode="once",
            **turns,
        )
        ui.stop.click(
            lambda document: document and document.stop.set(), ui.document, None, **at_once
        )


def _told(answer: Answer) -> str:
    return (
        f"{answer.new_tokens} tokens in {answer.total_ms / 1000:.1f} s, from "
        f"{answer.kept_visual_tokens:,} of {answer.visual_tokens:,} visual tokens"
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _theme() -> gr.themes.Base:
    return gr.themes.Default(
        primary_hue="rose",
        secondary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # the default greys and reds are too pale to read easily
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def run(
    reference: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_pages: int = 8,
    open_browser: bool = False,
    report: Callable[[str, str], None] = lambda url, text: print(text),
) -> None:
    """Load a model and serve the page until Ctrl-C.

    Args:
        reference: folder or hub id.
        host: address to listen on.
        port: ``None``: the first free one from 7860 on.
        max_pages: of a document; the rest is left out.
        open_browser: open the page in the machine's browser.
        report: told the page's address, and a sentence for people.

    Raises:
        WeightsError: no such model.
        AlignVLMError: the address cannot be used.
    """
    desk = Desk(*load_model(reference))
    page = WebPage(desk, Path(reference).name, max_pages).build()
    with tempfile.TemporaryDirectory(
        prefix="alignvlm-demo-", ignore_cleanup_errors=True
    ) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # what was dropped goes when the page does
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=open_browser,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_UPLOAD,
                ssr_mode=False,
                footer_links=[],
                theme=_theme(),
                css=_file("web_page.css"),
            )
        except OSError as error:
            raise AlignVLMError(
                f"cannot listen on {host}, port {port or '7860-7959'}: {error}"
            ) from None
        try:
            report(url, f"the page is at {url} (Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            desk.close()
            page.close(verbose=False)
