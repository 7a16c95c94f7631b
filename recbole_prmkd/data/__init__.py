"""The data of a run, as the teachers and the distillation read it. Start with `split`.

- `split`: RecBole's data set and split; `parts`: its training, validation and test parts as examples
- `examples`: a user, a target and the history before it; all histories are slices of one array
- `event_order`, `event_times`: the exact order of events, which RecBole's single precision loses
- `lost_lines`: interactions that RecBole's reader and filters take out
- `processed`, `atomic_files`: data sets in UniSRec's layout, and the headers of RecBole's files
- `text`, `encoder`: item text and its sentence vectors; `static_encoder`: the encoder that averages word vectors
- `images`: item pictures and their vectors
- `vectors_file`: vectors by token, in an `.npz` file
"""
