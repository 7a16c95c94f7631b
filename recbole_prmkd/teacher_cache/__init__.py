"""What the teachers say of the training examples, computed once and stored.

- `scores`: the scores of any examples and candidates, as a step asks for them
- `build`: from fitted teachers to their cache, made now or found
- `vectors`: what is stored of a teacher that compares vectors
- `stored_scores`: what is stored of one that scores all items at once
- `top_items`: the items that they rank first for each example
"""
