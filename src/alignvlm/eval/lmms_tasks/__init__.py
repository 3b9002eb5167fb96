"""Our tasks as lmms-eval task files (``*.yaml``), and the functions they name."""
