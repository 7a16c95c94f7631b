"""What the teachers know of the training examples, computed once and stored.

- `scores`: their vectors of items and histories, and the scores of any examples and candidates
- `top_items`: the items that they rank first for each example
"""
