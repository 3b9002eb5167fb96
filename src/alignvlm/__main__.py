"""``python -m alignvlm``."""

from .cli import main

main()
