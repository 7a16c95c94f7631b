"""The graph of a data set's interactions as a torch-geometric layer. Importing this takes seconds."""

import warnings
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor
from torch_geometric.nn import LGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_undirected


class InteractionGraph(LGConv):
    """One step along the edges between users and items: [N, D] -> [N, D], N = users + items, users first.

    Each pair of user and item in the data is one edge, divided by the roots of both degrees. The adjacency [N, N] is
    kept as the three parts of a CSR matrix, since torch can neither copy nor broadcast a CSR buffer; no part is in the
    state dict.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(normalize=False)  # done here, once
        user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        users, interactions = dataset.num(user), dataset.inter_feat
        nodes = users + dataset.num(item)
        edges = to_undirected(
            torch.stack([interactions[user], interactions[item] + users]), num_nodes=nodes
        )  # [2, E], none twice, sorted
        edges, weights = gcn_norm(edges, num_nodes=nodes, add_self_loops=False)
        row_ends = torch.bincount(edges[0], minlength=nodes).cumsum(0)
        self.register_buffer("row_starts", torch.cat([row_ends.new_zeros(1), row_ends]), persistent=False)  # [N + 1]
        self.register_buffer("columns", edges[1], persistent=False)  # [E]
        self.register_buffer("weights", weights, persistent=False)  # [E]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # torch says so once
            self.adjacency()

    def adjacency(self) -> Tensor:
        """The CSR matrix [N, N], symmetric, made of the parts without a copy."""
        nodes = len(self.row_starts) - 1
        return torch.sparse_csr_tensor(
            self.row_starts, self.columns, self.weights, (nodes, nodes), check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Each node's weighted sum over its neighbours, [N, D]."""
        return self.propagate(self.adjacency(), x=x, edge_weight=None)

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        """The same as one product, which torch-geometric prefers where the edges are a sparse matrix."""
        return _SymmetricProduct.apply(adj_t, x)


class _SymmetricProduct(torch.autograd.Function):
    """A symmetric sparse matrix times x; the gradient is the same product, where torch would transpose the matrix."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        with torch.autocast(x.device.type, enabled=False):  # single precision, forward and backward
            return torch.sparse.mm(matrix, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.matrix, gradient)
