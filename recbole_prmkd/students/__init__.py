"""Students: any RecBole model that is trained by gradient, without an edit, and the models of this package.

- `adapter`: the student as the method sees it: its own loss, its scores of candidates; owns every change to the model
- `traits`, `probe`, `defaults`: what a model's class is known for; what its first batch shows; the strength of its KD
  loss that follows
- `insight`: vectors, and scores anew, for KD methods of other papers
- `positives`: the training examples of a batch; `windows`, `causal_check`: one forward pass for all prefixes
- `layers`: dropout and BatchNorm while a student is distilled; `warm_start`: where its items start
- `lightgcn`, `graph`: LightGCN on a torch-geometric layer

To add one: a RecBole model in a file of its own, an entry in `STUDENTS`, `properties/model/<Name>.yaml`.
"""

from recbole.model.abstract_recommender import AbstractRecommender

from recbole_prmkd.students.lightgcn import PyGLightGCN

STUDENTS: dict[str, type[AbstractRecommender]] = {"PyGLightGCN": PyGLightGCN}

__all__ = ["STUDENTS"]
