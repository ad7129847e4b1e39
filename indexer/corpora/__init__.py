"""The texts that a run was trained on: published corpora as documents with stable ids, and exports held against them."""
