"""Answerers: batches say what single questions say, noise is a sample's own, floors."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.blanks import between_marks
from tests.eval.little_task import LittleTask

from alignvlm.errors import ConfigError, DataError, WeightsError
from alignvlm.eval import baselines
from alignvlm.eval.baselines import (
    KnownAnswers,
    MajorityAnswerer,
    RandomAnswerer,
    training_task,
)
from alignvlm.eval.tasks import Sample
from alignvlm.inference.answerers import LanguageModel, ModelAnswerer, Query, TextOnlyAnswerer
from alignvlm.inference.ask import ask
from alignvlm.inference.generate import LoopGuard, loop_start
from alignvlm.inference.noise import Noise, noise_like, noisy, sample_seed
from alignvlm.inference.prompt import build_prompts, chat
from alignvlm.vocabulary.usage import pruned_to, top_vocabulary


@pytest.fixture
def model(make_model):
    return make_model("align")


@pytest.fixture
def processor(make_processor, model):
    return make_processor(model.config)


@pytest.fixture
def queries():
    task = LittleTask()
    return [
        Query(task.sample(i).id, task.pages(i), task.sample(i).prompt, 6) for i in range(len(task))
    ]


def features_of(answerer, queries, size):
    """Noisy features of each sample, answered in batches of ``size``."""
    seen = []
    core = answerer.model.model
    whole = core.see

    def watch(pixels, *grids):
        features, pages = whole(pixels, *grids)
        seen.append(features)
        return features, pages

    core.see = watch
    for start in range(0, len(queries), size):
        answerer.answer(queries[start : start + size])
    core.see = whole
    return torch.cat(seen)


@pytest.mark.parametrize("dropping", [False, True])
def test_batches_say_what_single_questions_say(model, processor, queries, dropping):
    """Left padding, several pages, several tiles, with and without blank dropping."""
    if dropping:
        align, seen = (
            model.model.connector,
            features_of(ModelAnswerer(model, processor), queries, 8),
        )
        blank = align.vocab_distribution(seen)[..., model.config.blank_token_id]
        model.config.blank_threshold = between_marks(blank)
    answerer = ModelAnswerer(model, processor)
    single = [answerer.answer([query])[0] for query in queries]
    assert answerer.answer(queries[:5]) + answerer.answer(queries[5:]) == single
    for query, reply in zip(queries, single, strict=True):
        asked = ask(model, processor, query.pages, query.prompt, max_new_tokens=6)
        assert reply.text == asked.text
        assert reply.visual_tokens == asked.visual_tokens > 0
        assert reply.kept_visual_tokens == asked.kept_visual_tokens
        assert reply.new_tokens == asked.new_tokens
    dropped = [r.visual_tokens - r.kept_visual_tokens for r in single]
    assert (max(dropped) > 0) == dropping
    assert len({reply.text for reply in single}) > 1


def test_each_query_has_its_own_limit(model, processor, queries):
    short = [Query(q.id, q.pages, q.prompt, 1 + i) for i, q in enumerate(queries[:3])]
    replies = ModelAnswerer(model, processor).answer(short)
    assert [reply.new_tokens for reply in replies] == [1, 2, 3]


@pytest.mark.parametrize("dropping", [False, True])
def test_a_prompt_longer_than_the_context_is_named(
    model, processor, queries, dropping, monkeypatch
):
    """Counted after blank dropping, for each query of a padded batch by itself."""
    if dropping:
        monkeypatch.setattr(model.config, "blank_threshold", 0.0)  # everything is blank
    answerer = ModelAnswerer(model, processor, check_context=True)
    short, long = queries[0], Query("long", queries[1].pages, "1" * 300, 6)
    replies = answerer.answer([short, long])
    assert (replies[1].kept_visual_tokens == 0) == dropping
    (length,) = build_prompts(model, processor, [chat(long.prompt, long.pages)]).lengths
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", length + 6)
    assert answerer.answer([short, long]) == replies
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", length + 5)
    with pytest.raises(DataError, match=rf"^long: the prompt has {length} tokens .* reads"):
        answerer.answer([short, long])
    assert answerer.answer([short]) == replies[:1]
    assert len(ModelAnswerer(model, processor).answer([long])) == 1


def test_noise_is_the_samples_own(model, processor, queries):
    """Batches of one, of four and of three add the same noise; another seed adds another."""
    answerer = ModelAnswerer(model, processor, noise=3.0)
    single = features_of(answerer, queries, 1)
    torch.testing.assert_close(features_of(answerer, queries, 4), single, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features_of(answerer, queries, 3), single, atol=1e-5, rtol=1e-5)
    clean = features_of(ModelAnswerer(model, processor), queries, 4)
    noise = single - clean
    assert noise.std().item() == pytest.approx(3.0, rel=0.05)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.2)
    other = features_of(ModelAnswerer(model, processor, noise=3.0, seed=1), queries, 4)
    assert (other - single).std().item() == pytest.approx(3.0 * 2**0.5, rel=0.05)
    # two tiles of one sample differ, and so do equal tiles of two samples
    assert not torch.allclose(noise[0], noise[1], atol=0.1)
    torch.testing.assert_close(features_of(ModelAnswerer(model, processor), queries, 4), clean)


def test_noise_reaches_an_inner_layer(make_model, make_processor, queries):
    model = make_model("align", vision_feature_layer=-2)
    processor = make_processor(model.config)
    clean = features_of(ModelAnswerer(model, processor), queries, 4)
    noisy = features_of(ModelAnswerer(model, processor, noise=2.0), queries, 4)
    assert (noisy - clean).std().item() == pytest.approx(2.0, rel=0.05)


def test_noise_hook_is_gone_after_an_error(model):
    hooks = model.model.vision_model._forward_hooks
    grids = torch.tensor([[1, 1, 0]])
    with pytest.raises(ZeroDivisionError), noisy(model.model, Noise(1.0, [1]), grids, [1]):
        assert len(hooks) == 1
        raise ZeroDivisionError
    assert len(hooks) == 0
    with pytest.raises(ValueError, match="noise for 3 tiles, the encoder saw 2"):
        noise_like(torch.zeros(2, 4), [1], [3])
    assert sample_seed(0, "a") != sample_seed(0, "b") != sample_seed(1, "b")
    assert 0 <= sample_seed(7, "x") < 2**63


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_noise_that_is_no_standard_deviation(model, processor, sigma):
    with pytest.raises(ConfigError, match="noise"):
        ModelAnswerer(model, processor, noise=sigma)


def test_settings_say_what_decides(model, processor):
    said = ModelAnswerer(model, processor, noise=2, seed=5, repetition_guard=True).settings()
    assert said["noise"] == 2.0 and said["noise_seed"] == 5
    assert said["dtype"] == "float32"
    assert said["tiling"]["max_tiles"] == 4 and said["tiling"]["width"] == 28
    assert "<|im_start|>" in said["chat_template"]
    assert said["generation"]["do_sample"] is False
    assert said["generation"]["repetition_guard"] == {"period": 24, "repeats": 4, "tokens": 12}
    plain = ModelAnswerer(model, processor).settings()
    assert plain["noise_seed"] is None and plain["generation"]["repetition_guard"] is None


def test_loops_are_found_and_numbers_are_not():
    assert loop_start([1, 2] + [5, 6, 7] * 4) == 5
    assert loop_start([9] + [4] * 12) == 2
    assert loop_start([9] + [4] * 11) is None
    assert loop_start([3, 1] + [8, 0, 0, 0] * 3) is None  # 1,000,000,000
    assert loop_start([5, 6, 7] * 4 + [8]) is None
    assert loop_start([6, 7] + [5, 6, 7] * 4) == 3  # the round began before
    assert loop_start([]) is None
    rows = torch.tensor([[1] * 14, [*range(14)], [7, 7, *range(12)]])
    assert LoopGuard(2)(rows, None).tolist() == [True, False, False]
    assert LoopGuard(4)(rows, None).tolist() == [False, False, False]


def test_the_guard_ends_loops_and_changes_nothing_else(model, processor, queries):
    """The tiny model repeats itself at once; only what follows the first round is cut."""
    longer = [Query(q.id, q.pages, q.prompt, 40) for q in queries]
    free = ModelAnswerer(model, processor).answer(longer)
    guarded = ModelAnswerer(model, processor, repetition_guard=True)
    replies = guarded.answer(longer)
    assert any(reply.new_tokens < one.new_tokens for reply, one in zip(replies, free))
    for reply, one in zip(replies, free, strict=True):
        assert one.text.startswith(reply.text)
    assert [guarded.answer([query])[0] for query in longer] == replies


def test_text_only_is_the_model_without_its_pages(model, processor, queries):
    language = LanguageModel.of(model, processor)
    replies = TextOnlyAnswerer(language).answer(queries)
    for query, reply in zip(queries, replies, strict=True):
        assert reply.text == ask(model, processor, [], query.prompt, max_new_tokens=6).text
        assert reply.visual_tokens == 0
    seeing = ModelAnswerer(model, processor).answer(queries)
    assert [r.text for r in seeing] != [r.text for r in replies]


def test_a_plain_language_model_can_answer(tiny_lm_dir, tiny_model_dir, queries, tmp_path):
    plain = LanguageModel.load(tiny_lm_dir)
    replies = TextOnlyAnswerer(plain).answer(queries)
    assert replies == [TextOnlyAnswerer(plain).answer([query])[0] for query in queries]
    whole = LanguageModel.load(tiny_model_dir)
    assert plain.chat_template == whole.chat_template
    assert plain.max_length == whole.max_length == 2048
    said = TextOnlyAnswerer(plain).settings()
    assert list(said["model"]["sha256"]) == ["model.safetensors"]
    with pytest.raises(WeightsError, match="gone"):
        LanguageModel.load(tmp_path / "gone")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not a valid JSON file"):
        LanguageModel.load(tmp_path)


# --- floors --------------------------------------------------------------------------------------


class Answered(LittleTask):
    """Answers as given; every prompt is asked for in turn."""

    def __init__(self, rows, split="val", metric="anls"):
        super().__init__(len(rows), (metric,))
        self.rows, self.split = rows, split

    def sample(self, index):
        prompt, answers = self.rows[index]
        return Sample(f"s{index}", "doc", prompt, prompt, answers)


ROWS = [
    ("date?", ("1 May",)), ("name?", ("Ann",)), ("name?", ("Bob", "Robert")), ("name?", ("Bob",)),
    ("date?", ("2 May",)), ("date?", ("2 May",)), ("date?", ("1 May",)), ("total?", ()),
] * 10  # fmt: skip


def test_majority_is_the_most_frequent_answer_to_the_prompt():
    floor = MajorityAnswerer(KnownAnswers.of(Answered(ROWS, "train")))
    asked = [Query("x", [], prompt, 5) for prompt in ("name?", "date?", "total?", "else?")]
    # of the two dates the first met; the field that no document has; of all answers the most, or
    # the first met of them
    assert [r.text for r in floor.answer(asked)] == ["Bob", "1 May", "None", "1 May"]
    assert floor.settings() == {"answers_from": "little train"}
    assert not floor.needs_pages


def test_a_floor_does_not_know_a_questions_own_answer():
    """Questions asked once, and answers from the evaluated split: only the overall ones count."""
    rows = [(f"question {i}?", ("b" if i % 3 else f"a{i}",)) for i in range(30)]
    floor = MajorityAnswerer(KnownAnswers.of(Answered(rows)))
    asked = [Query(f"s{i}", [], prompt, 5) for i, (prompt, _) in enumerate(rows)]
    assert {reply.text for reply in floor.answer(asked)} == {"b"}
    drawn = RandomAnswerer(KnownAnswers.of(Answered(rows))).answer(asked)
    right = [reply.text == answers[0] for reply, (_, answers) in zip(drawn, rows, strict=True)]
    assert sum(right) < 25


def test_random_draws_from_the_answers_to_the_prompt():
    floor = RandomAnswerer(KnownAnswers.of(Answered(ROWS)), seed=1)
    asked = [Query(f"s{i}", [], "name?", 5) for i in range(600)]
    drawn = [reply.text for reply in floor.answer(asked)]
    shares = Counter(drawn)
    assert set(shares) == {"Ann", "Bob"}
    assert shares["Bob"] / 600 == pytest.approx(2 / 3, abs=0.06)
    assert [floor.answer([query])[0].text for query in asked] == drawn
    other = RandomAnswerer(KnownAnswers.of(Answered(ROWS)), seed=2)
    assert [reply.text for reply in other.answer(asked)] != drawn


def test_a_list_answer_is_given_with_all_items():
    rows = [("which?", ("a", "b")), ("which?", ("a", "b")), ("which?", ("a",))]
    task = Answered(rows, metric="denotation_accuracy")
    reply = MajorityAnswerer(KnownAnswers.of(task)).answer([Query("x", [], "which?", 5)])[0]
    assert reply.text == "a|b"
    assert task.metrics[0].verdict(reply.text, ("b", "a")) == {"score": 1.0}


def test_answers_come_from_the_train_split_where_there_is_one(monkeypatch, tmp_path):
    train = Answered(ROWS, "train")
    monkeypatch.setattr(baselines, "load_task", lambda name, data, split: train)
    assert training_task(Answered(ROWS), tmp_path) is train
    evaluated = Answered(ROWS)
    assert training_task(evaluated, None) is evaluated
    monkeypatch.undo()
    assert training_task(evaluated, tmp_path) is evaluated  # no such task on the disk


# --- pruning -------------------------------------------------------------------------------------


def test_top_vocabulary_is_what_p_vocab_uses_most(model, processor, images):
    ids = top_vocabulary(model, processor, images, 20)
    align = model.model.connector
    total = torch.zeros(align.vocab_size)
    for image in images:
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        total += align.vocab_distribution(model.model.encode_tiles(pixels)).flatten(0, -2).sum(0)
    total[model.config.blank_token_id] = 1e9
    assert ids.tolist() == sorted(total.topk(20).indices.tolist())
    assert model.config.blank_token_id in ids


def test_pruning_to_everything_changes_nothing_and_is_undone(model, processor, queries, images):
    answerer = ModelAnswerer(model, processor)
    whole = answerer.answer(queries)
    size = model.model.connector.vocab_size
    with pruned_to(model, top_vocabulary(model, processor, images, size)):
        assert answerer.answer(queries) == whole
    with pruned_to(model, top_vocabulary(model, processor, images, 5)):
        assert model.config.connector.kept_tokens == 5
        assert answerer.answer(queries) != whole
        with pytest.raises(ConfigError, match="cannot keep 6 of 5"):
            top_vocabulary(model, processor, images, 6)
        assert len(top_vocabulary(model, processor, images, 3)) == 3
    assert model.config.connector.kept_tokens is None
    assert answerer.answer(queries) == whole


def test_what_cannot_be_pruned(model, processor, images, make_model, make_processor):
    with pytest.raises(ConfigError, match="no page"):
        top_vocabulary(model, processor, [], 5)
    with pytest.raises(ConfigError, match="cannot keep 0"):
        top_vocabulary(model, processor, images, 0)
    with (
        pytest.raises(ConfigError, match="cannot prune: token_ids has duplicates"),
        pruned_to(model, torch.tensor([3, 3])),
    ):
        pass
    other = make_model("mlp")
    with pytest.raises(ConfigError, match="'mlp'"):
        top_vocabulary(other, make_processor(other.config), images, 5)
