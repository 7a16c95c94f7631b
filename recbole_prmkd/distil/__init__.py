"""The method: from a batch to `kd_loss`. Start with `objective`, which shows it on one screen.

- `trainer`: RecBole's trainers with distillation: the loss of a step, the curriculum of an epoch
- `objective`: candidates, teacher scores, weighting, student scores, loss
- `candidates`: the items that an example is distilled on
- `weighting`: soft targets, confidence, consistency, and the fused target; `shown`: what held-out examples say of the
  teachers
- `losses`: the distance between fused target and student; `baselines`: other papers' ways to distil, for which
  `method_steps` makes what they see of a batch
- `formula`: the loss in one line
- `curriculum`: which examples an epoch shows; `pacing`: its formulas
"""
