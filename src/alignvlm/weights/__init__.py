"""Where weights come from: :func:`alignvlm.weights.resolve.resolve` knows every name."""
