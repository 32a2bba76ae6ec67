"""The fused-loss forwards, one file per model family, over one engine (`causal_lm`)."""
