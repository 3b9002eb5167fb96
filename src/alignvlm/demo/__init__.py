"""The web page for one person (gradio)."""
