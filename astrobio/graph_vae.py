"""The metabolic network's encoder: a variational graph autoencoder on a graph transformer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import GPSConv, TransformerConv
from torch_geometric.utils import scatter

from astrobio.blocks import Checkpointed, Mlp, Queries, dtype_of
from astrobio.config import GraphVAEConfig
from astrobio.losses import masked_penalty
from astrobio.schema import EDGE_FEATURES, NODE_FEATURES, NODE_KINDS

FLUX = NODE_FEATURES.index("flux")
REACTION = NODE_KINDS.index("reaction")


class GraphOutput(NamedTuple):
    """``tokens`` [B, tokens, out_size], and per sample [B] in float32: ``reconstruction`` error of node features,
    edge features and links, ``kl`` divergence per latent number, ``imbalance`` of the decoded fluxes (0 to 1)."""

    tokens: Tensor
    reconstruction: Tensor
    kl: Tensor
    imbalance: Tensor


def places(graphs) -> tuple[Tensor, Tensor]:
    """Where the nodes of a `astrobio.batch.graph_batch` stand when each graph is a row as long as the largest one:
    ``place`` [N] of each node among all B × longest, and ``real`` [B, longest], True where there is a node."""
    sizes = graphs.ptr.diff()
    columns = torch.arange(graphs.longest, device=sizes.device)
    first = torch.arange(len(sizes), device=sizes.device) * graphs.longest - graphs.ptr[:-1]
    return torch.arange(len(graphs.batch), device=sizes.device) + first[graphs.batch], columns < sizes[:, None]


def spread(x: Tensor, place: Tensor, real: Tensor) -> Tensor:
    """Node features [N, F] as rows [B, longest, F], zero where a graph has no node; see `places`."""
    return x.new_zeros(real.numel(), x.shape[-1]).index_copy(0, place, x).unflatten(0, real.shape)


class Messages(TransformerConv):
    """PyG's attention along edges, with its softmax and its sums in float32: in 16 bits each edge that is added would
    be rounded. A card adds in no fixed order, so that the last bits of two runs can still differ there."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):
        wide = torch.promote_types(query_i.dtype, torch.float32)
        return super().message(query_i.to(wide), key_j.to(wide), value_j.to(wide), edge_attr, index, ptr, size_i)

    def aggregate(self, inputs, index, ptr=None, dim_size=None):
        return super().aggregate(inputs, index, ptr=ptr, dim_size=dim_size).to(dtype_of(self))


class GPS(GPSConv):
    """PyG's layer, told the `places` of the nodes. By itself it finds them out each time, and makes the host wait for
    the card thrice."""

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor, place: Tensor, real: Tensor) -> Tensor:
        local = self.norm1(self.conv(x, edge_index, edge_attr=edges) + x)
        rows = spread(x, place, real)
        rows, _ = self.attn(rows, rows, rows, key_padding_mask=~real, need_weights=False)
        out = local + self.norm2(rows.flatten(0, 1).index_select(0, place) + x)
        return self.norm3(out + self.mlp(out))


class Layer(nn.Module):
    """One GPS layer (Rampášek et al. 2022): message passing along reactions beside attention among all nodes."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        messages = Messages(size, size // heads, heads=heads, edge_dim=len(EDGE_FEATURES))
        self.layer = GPS(size, messages, heads=heads, norm="layer_norm", norm_kwargs={"mode": "node"}, act="gelu")

    def forward(self, *args: Tensor) -> Tensor:
        return self.layer(*args)


class GraphVAE(nn.Module):
    """Metabolic networks to tokens, through a Gaussian latent per node (Kipf & Welling 2016, arXiv:1611.07308).

    Decoders give back node features, edge features and links, so that the latent must hold the network; the decoded
    fluxes should balance at every metabolite inside the cell, by the stoichiometry that is given.
    """

    def __init__(self, config: GraphVAEConfig, out_size: int):
        super().__init__()
        size, latent = config.hidden_size, config.latent_size
        if size % config.heads:
            raise ValueError(f"metabolism.hidden_size {size} must be a multiple of metabolism.heads {config.heads}")
        self.node_inlet = nn.Linear(len(NODE_FEATURES) + len(NODE_KINDS), size)
        self.layers = Checkpointed(Layer(size, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        self.posterior = nn.Linear(size, 2 * latent)
        self.decode_nodes = Mlp(latent, size, len(NODE_FEATURES))
        self.decode_edges = Mlp(2 * latent, size, len(EDGE_FEATURES))
        self.decode_links = nn.Linear(latent, latent, bias=False)
        self.latent_out = nn.Linear(latent, size)
        self.queries = Queries(config.tokens, size, config.heads, out_size)

    def forward(self, graphs) -> GraphOutput:
        """``graphs``: a `astrobio.batch.graph_batch` with normalised ``x`` [N, F] and ``edge_attr`` [E, 2], ``kind``
        [N], ``edge_index`` [2, E], the raw ``stoichiometry`` [E] and the flux's own ``flux_mean`` and ``flux_std``."""
        dtype = dtype_of(self)
        graph, count, (source, target) = graphs.batch, graphs.num_graphs, graphs.edge_index
        kind = graphs.kind[:, None] == torch.arange(len(NODE_KINDS), device=graphs.kind.device)
        x = self.node_inlet(torch.cat([graphs.x, kind], dim=-1).to(dtype))
        place, real = places(graphs)
        x = self.norm(self.layers(x, constants=(graphs.edge_index, graphs.edge_attr.to(dtype), place, real)))

        mean, log_variance = self.posterior(x).float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-10, 4)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        z = (mean + noise * torch.exp(0.5 * log_variance)).to(dtype)

        def per_graph(values: Tensor, owner: Tensor) -> Tensor:
            return scatter(values, owner, dim=0, dim_size=count, reduce="mean")

        nodes = self.decode_nodes(z).float()
        links = self.decode_edges(torch.cat([z[source], z[target]], dim=-1)).float()
        reconstruction = (
            per_graph(((nodes - graphs.x) ** 2).mean(-1), graph)
            + per_graph(((links - graphs.edge_attr) ** 2).mean(-1), graph[source])
            + self._link_error(z, graphs, per_graph)
        )
        kl = per_graph(0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean(-1), graph)

        latent = spread(self.latent_out(z), place, real)
        return GraphOutput(
            self.queries(latent, masked_penalty(real)), reconstruction, kl, self._imbalance(nodes[:, FLUX], graphs)
        )

    def _link_error(self, z: Tensor, graphs, per_graph) -> Tensor:
        """Cross-entropy of the true links against as many pairs with another node of the same graph: a random one in
        training, else the one half a graph away, so that an evaluation gives the same twice."""
        source, target = graphs.edge_index
        owner = graphs.batch[source]
        first, size = graphs.ptr[owner], graphs.ptr.diff()[owner]
        away = torch.rand(len(source), device=z.device) if self.training else torch.full_like(z[source, 0], 0.5)
        stranger = first + (target - first + (away.float() * size).long()) % size
        from_source = self.decode_links(z)[source].float() * z.shape[-1] ** -0.5
        true = (from_source * z[target].float()).sum(-1)
        false = (from_source * z[stranger].float()).sum(-1)
        return per_graph(nn.functional.softplus(-true) + nn.functional.softplus(false), owner)

    @staticmethod
    def _imbalance(flux: Tensor, graphs) -> Tensor:
        """Σ|S·v| ÷ (Σ|S|·|v| + 1 mmol gDW-1 h-1) over the metabolites inside the cell, of the decoded reaction fluxes
        ``v``. The constant, small beside a living cell's turnover, keeps the gradient of a dormant one bounded."""
        flux = flux * graphs.flux_std + graphs.flux_mean
        flux = torch.sign(flux) * torch.expm1(flux.abs().clamp(max=12))
        source, target = graphs.edge_index
        from_reaction = graphs.kind[source] == REACTION
        reaction = torch.where(from_reaction, source, target)
        metabolite = torch.where(from_reaction, target, source)
        turnover = graphs.stoichiometry * flux[reaction]
        nodes = len(graphs.kind)
        net = scatter(turnover, metabolite, dim=0, dim_size=nodes).abs() * graphs.balanced
        gross = scatter(turnover.abs(), metabolite, dim=0, dim_size=nodes) * graphs.balanced
        net, gross = (scatter(v, graphs.batch, dim=0, dim_size=graphs.num_graphs) for v in (net, gross))
        return net / (gross + 1.0)
