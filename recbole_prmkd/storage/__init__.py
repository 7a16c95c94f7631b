"""What a run computes once and a future run may trust. The lowest room: it knows nothing of data or teachers.

- `store`: folders with a manifest, which are reused only where identity and checksums match
- `encoding_jobs`: the encoding of many items or histories, which resumes after a kill
- `json_files`: JSON with a checksum; `disk`: full and read-only disks, as one sentence; `locks`: one run in a folder
"""
