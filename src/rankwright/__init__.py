"""Rankwright trains, evaluates and runs text rerankers."""
