"""What the teachers say of the training examples, computed once and stored. Start with `scores`.

- `store`: folders with a manifest, which a later run reuses only where identity and checksums match
- `encoding_jobs`: the encoding of many items or histories, which resumes after a kill
- `scores`: the teachers' scores of any training examples and candidates, from their stored vectors
- `top_items`: the items that the teachers rank first for each training example
"""
