"""Writing new keys and values into the paged cache (Kwon et al. 2023, arXiv:2309.06180)."""

from torch import Tensor

from ._triton import tl, triton


def reference(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """k, v [T, Hk, D] into caches [pages, PAGE_SIZE, Hk, D] at slots [T]: page * PAGE_SIZE + offset."""
    k_cache.view(-1, *k.shape[1:])[slots] = k
    v_cache.view(-1, *v.shape[1:])[slots] = v


@triton.jit
def _kv_write_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr,
    k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    HEAD_DIM: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the key and value of one token, SIZE = Hk * D elements each, into the cache row slots[t].

    k, v [T, Hk, D] with token and head strides; caches [slots, SIZE], contiguous; slots [T] int64.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    head, dim = column // HEAD_DIM, column % HEAD_DIM
    k = tl.load(k_ptr + token * k_stride_token + head * k_stride_head + dim, inside)
    v = tl.load(v_ptr + token * v_stride_token + head * v_stride_head + dim, inside)
    tl.store(k_cache_ptr + slot * SIZE + column, k, inside)
    tl.store(v_cache_ptr + slot * SIZE + column, v, inside)


def triton_kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """As `reference`; k and v may be strided views whose last dimension is contiguous."""
    tokens, heads, head_dim = k.shape
    size = heads * head_dim
    _kv_write_kernel[(tokens,)](
        k, v, k_cache.view(-1, size), v_cache.view(-1, size), slots,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        HEAD_DIM=head_dim, SIZE=size, BLOCK=triton.next_power_of_2(size),
    )  # fmt: skip
