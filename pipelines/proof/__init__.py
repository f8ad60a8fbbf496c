"""Proof: what a run says of itself, carried elsewhere, trained again and compared."""
