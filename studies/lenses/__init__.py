"""Which words visual tokens stand for: P_vocab beside the lenses that others look through."""
