"""What P_vocab says over a corpus, and pruning to it."""
