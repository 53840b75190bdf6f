# SPDX-License-Identifier: Apache-2.0
"""Which shards of a host pool a rank holds, and the roots of their keys.

A rank's number is no part of a root, what it holds is: so ranks of another TP size find pages of
``shard_heads`` heads, and all ranks share what is the same on all of them.
"""

from typing import Any, NamedTuple

from bodocache.errors import ConfigError
from bodocache.identity import HeldShard, Root, Shard, shards_of_rank
from bodocache.integrations.sglang.options import Options
from bodocache.layout import Group


class Rank(NamedTuple):
    """Of SGLang's HiCacheStorageConfig, what says which part of the model this process has."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    is_replicated: bool  # MLA: all TP ranks hold the same
    is_writer: bool  # of what is the same on all of them
    model: str
    tp_lcm_size: int

    @classmethod
    def of(cls, config: Any) -> "Rank":
        """Of any version of SGLang that we know: fields that it has not are as if there were none.

        Raises:
            ConfigError: decode context parallelism, for which SGLang takes other backends only.
        """
        if getattr(config, "dcp_size", 1) > 1:
            raise ConfigError("decode context parallelism: not with this storage backend")
        is_replicated = bool(config.is_mla_model)
        return cls(
            tp_rank=config.tp_rank,
            tp_size=config.tp_size,
            pp_rank=getattr(config, "pp_rank", 0),
            pp_size=getattr(config, "pp_size", 1),
            cp_rank=getattr(config, "attn_cp_rank", 0),
            cp_size=getattr(config, "attn_cp_size", 1),
            is_replicated=is_replicated,
            is_writer=not is_replicated or config.tp_rank == 0,
            model=config.model_name or "",
            tp_lcm_size=getattr(config, "tp_lcm_size", None) or 0,
        )


def held_shards(options: Options, rank: Rank, pool: Any) -> tuple[HeldShard, ...]:
    """The shards of ``pool`` that this rank holds, in the order of their heads.

    Raises:
        ConfigError: heads, ranks and ``shard_heads`` do not divide.
    """
    layers = _layers(pool)
    heads = getattr(pool, "head_num", None)
    if rank.is_replicated and heads is None and not _is_per_rank(pool):
        return (HeldShard(Shard(layers, range(1)), rank.is_writer),)
    if heads is None:  # nobody says how it is divided: by ranks
        return (HeldShard(Shard(layers, range(rank.tp_rank, rank.tp_rank + 1)), writes=True),)
    of_model = options.kv_heads or heads * rank.tp_size
    if max(1, of_model // rank.tp_size) != heads:
        raise ConfigError(
            f"kv_heads = {of_model} on {rank.tp_size} ranks: a rank's pool has {heads} heads"
        )
    shard_heads = options.shard_heads
    if not shard_heads and rank.tp_lcm_size and pool.layout == "page_head":
        shard_heads = max(1, of_model // rank.tp_lcm_size)
    held = shards_of_rank(
        Group("kv", len(layers), of_model, 1, 1),
        tp_rank=rank.tp_rank,
        tp_size=rank.tp_size,
        shard_heads=shard_heads or None,
    )
    first = layers.start
    return tuple(
        it._replace(
            shard=Shard(
                range(first + it.shard.layers.start, first + it.shard.layers.stop), it.shard.heads
            )
        )
        for it in held
    )


def root_of(options: Options, rank: Rank, pool: Any, *, name: str, shard: Shard, form: str) -> Root:
    """The root of the keys of ``shard`` of the pool that SGLang calls ``name``."""
    stage = f" stage {rank.pp_rank} of {rank.pp_size}" if rank.pp_size > 1 else ""
    ranks = "" if getattr(pool, "head_num", None) else f" of {rank.tp_size} ranks"
    if rank.is_replicated and not _is_per_rank(pool):
        ranks = ""
    return Root(
        model=options.model or rank.model,
        page_tokens=int(pool.page_size),
        group=f"{name}{ranks}{stage}",
        shard=Shard(shard.layers, shard.heads, rank.cp_rank, rank.cp_size),
        dtype=str(pool.dtype),
        form=f"sglang {form}",
        kv="latent" if rank.is_replicated else "kv",
        revision=options.revision,
        weights_version=options.weights_version,
        quantiser=options.quantiser,
    )


def _layers(pool: Any) -> range:
    """The layers that a pool holds, in the model's numbering where it says so."""
    count = int(getattr(pool, "layer_num", 0) or getattr(pool, "num_mamba_layers", 0) or 1)
    first = int(getattr(pool, "start_layer", 0) or 0)
    return range(first, first + count)


def _is_per_rank(pool: Any) -> bool:
    """Whether a pool's state differs between TP ranks even where the model's KV does not."""
    return hasattr(pool, "num_mamba_layers")
