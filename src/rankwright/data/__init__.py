"""From rows to packed batches."""
