"""Fine-tuning on a user's own documents, and merging the adapter it gives."""

from __future__ import annotations

from .adapter import load_adapted
from .merge import merge_adapter
from .report import Outcome
from .session import finetune
from .settings import Settings, settings_from

__all__ = ["Outcome", "Settings", "finetune", "load_adapted", "merge_adapter", "settings_from"]
