"""KD baselines: other papers' ways to distil, in the same harness, so that "better" is measured.

- `step`: what a method sees of a batch, and how it is registered; `ranking`: the teachers' first items, in their order
- `covered`: vectors that a teacher has
- first items: `rd` (Ranking Distillation), `cd` (Collaborative Distillation), `rrd` (DE-RRD's relaxed ranking),
  `dcd` (Dual Correction), `unkd` (within popularity groups), `rcekd` (cross entropy on teacher's and student's first),
  `dllm2rec`
- several teachers: `hetcomp` (from easy to hard), `diverse` (only teachers that are better on the example)
- vectors: `de` (DE-RRD's experts), `topology` (relations within the batch), `align` (projected vectors)
- no teacher: `mean_teacher`; the teacher Uniform makes kl label smoothing

Each is a value of `kd_loss`. Candidates, teacher cache, students and trainers are those of the method, and presets
of the same names set the rest. Most papers have one teacher; here the fused target of all decides, unless a file says
otherwise. Another package joins by an entry point (`recbole_host.plugins`).
"""

from recbole_prmkd.distil.baselines.align import METHOD as ALIGN
from recbole_prmkd.distil.baselines.cd import METHOD as CD
from recbole_prmkd.distil.baselines.dcd import METHOD as DCD
from recbole_prmkd.distil.baselines.de import METHOD as DE
from recbole_prmkd.distil.baselines.diverse import METHOD as DIVERSE
from recbole_prmkd.distil.baselines.dllm2rec import METHOD as DLLM2REC
from recbole_prmkd.distil.baselines.hetcomp import METHOD as HETCOMP
from recbole_prmkd.distil.baselines.mean_teacher import METHOD as MEAN_TEACHER
from recbole_prmkd.distil.baselines.rcekd import METHOD as RCEKD
from recbole_prmkd.distil.baselines.rd import METHOD as RD
from recbole_prmkd.distil.baselines.rrd import METHOD as RRD
from recbole_prmkd.distil.baselines.step import Method, Sizes, Step, Vectors
from recbole_prmkd.distil.baselines.topology import METHOD as TOPOLOGY
from recbole_prmkd.distil.baselines.unkd import METHOD as UNKD
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import plugins

BASELINES: dict[str, Method] = {
    "rd": RD,
    "cd": CD,
    "rrd": RRD,
    "dcd": DCD,
    "unkd": UNKD,
    "rcekd": RCEKD,
    "dllm2rec": DLLM2REC,
    "hetcomp": HETCOMP,
    "diverse": DIVERSE,
    "de": DE,
    "topology": TOPOLOGY,
    "align": ALIGN,
    "mean_teacher": MEAN_TEACHER,
}


def method_of(kd_loss: str) -> Method | None:
    """The KD method of this name, ours or another package's; None: one of the method's own losses.

    Raises:
        UserError: another package's cannot be loaded or is no `Method`.
    """
    if kd_loss in BASELINES or kd_loss not in plugins.found():
        return BASELINES.get(kd_loss)
    method = plugins.load(kd_loss)
    if not isinstance(method, Method):
        raise UserError(
            f"The entry point {kd_loss} names {method!r}, which is no KD method: let it name a "
            "recbole_prmkd.distil.baselines.Method."
        )
    return method


__all__ = ["BASELINES", "Method", "Sizes", "Step", "Vectors", "method_of"]
