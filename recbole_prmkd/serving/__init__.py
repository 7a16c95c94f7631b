"""A trained student in use. Every run's folder holds what is needed; the data set is not.

- `kept_data`: what a run keeps of its data set; one file for all kinds of model
- `loaded_model`: the student rebuilt from a run's folder or from one file, and evaluated again
- `histories`: what each user is known to have taken; `scoring`: scores of users and of new histories
- `recommendation`: lists of the best items; `list_file`: their file, which a killed run goes on with
- `new_items`: items that came after training, by their texts
- `user_files`: users and histories that somebody names
- `exports`: vectors, weights, ONNX; `products`: a model's scores as products of user and item vectors
- `carry_over`: a new student that starts from the weights of an earlier one (`kd_student_checkpoint`)
- `command`: the command line of all of it
"""

from recbole_prmkd.serving.exports import export
from recbole_prmkd.serving.loaded_model import LoadedModel, load
from recbole_prmkd.serving.recommendation import recommend

__all__ = ["LoadedModel", "export", "load", "recommend"]
