"""A page reader beside RapidOCR: the same pages, the same run, the same threads.

``python -m benchmarks.reading`` measures, ``python -m benchmarks.reading report`` prints the tables
of what is stored. Readers stand in ``readers``, pages and their true text in ``pages``, what is
counted in ``metrics``, the tables in ``quality`` and ``cost``.
"""
