"""KD baselines: the losses of other papers in the same harness, so that "better" is measured.

- `ranking`: the items that the teachers rank first for an example, in their order, and the losses' settings
- `rd`: Ranking Distillation (arXiv 1809.07428); `rrd`: DE-RRD's relaxed ranking loss (arXiv 2012.04357);
  `dllm2rec`: DLLM2Rec's importance-aware ranking distillation (arXiv 2405.00338)

The three are values of `kd_loss`. Candidates, teacher cache, students and trainers are those of the method, and presets
of the same names set the rest. Their papers have one teacher; here the fused target of all teachers decides the order.
"""

from collections.abc import Callable

from torch import Tensor

from recbole_prmkd.distil.baselines.dllm2rec import dllm2rec
from recbole_prmkd.distil.baselines.ranking import RankSettings
from recbole_prmkd.distil.baselines.rd import rd
from recbole_prmkd.distil.baselines.rrd import rrd

# (student's scores [B, C], fused target [B, C], mask [B, C], settings) -> loss of each example [B]. Scores are finite,
# and very low where masked; the target is 0 there.
BASELINES: dict[str, Callable[[Tensor, Tensor, Tensor, RankSettings], Tensor]] = {
    "rd": rd,
    "rrd": rrd,
    "dllm2rec": dllm2rec,
}
# Their rankings hold items that the user has not met, so an example's own target is no candidate.
WITHOUT_TARGET = {"rd", "rrd"}

__all__ = ["BASELINES", "WITHOUT_TARGET", "RankSettings"]
