"""How the shipped checkpoint was made: ``python -m benchmarks.smol.STEP --data FOLDER``.

Steps, in order: ``corpus`` (lines of text), ``spell`` (speller and ALIGN from text), ``locate``
(where characters stand, from rendered pages), ``adapt`` (the language model, on ideal readings),
``assemble`` (``models/smol``), ``measure`` (the numbers of the model card). Each goes on after an
interruption; everything lies in ``runs/smol``. ``--data`` holds the benchmarks in their official
layouts, see docs/evaluation.md.
"""
