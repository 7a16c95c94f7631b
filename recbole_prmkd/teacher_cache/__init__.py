"""What the teachers know, computed once and stored.

- `store`: folders with a manifest, which a later run reuses only where identity and checksums match
- `encoding_jobs`: the encoding of many items or histories, which resumes after a kill
- `scores`: the teachers' scores of any training examples and candidates
"""
