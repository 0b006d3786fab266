from hypothesis import given
from hypothesis import strategies as st

from tmapdiff.data._sharing import BatchShares, share_of

counts, processes = st.integers(0, 50), st.integers(1, 7)


@given(counts, processes)
def test_shares_are_the_whole_in_order_and_differ_by_one(count, num_processes):
    shares = [share_of(count, num_processes, process) for process in range(num_processes)]
    assert [position for share in shares for position in share] == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(counts, st.integers(1, 5), processes)
def test_processes_together_do_the_batches_of_one(count, batch_size, num_processes):
    order = [f"sample {position}" for position in range(count)]
    shares = [
        list(BatchShares(order, batch_size, num_processes, process))
        for process in range(num_processes)
    ]
    alone = list(BatchShares(order, batch_size * num_processes))
    for process, batches in enumerate(shares):
        sampler = BatchShares(order, batch_size, num_processes, process)
        assert len(batches) == len(sampler)
        for place, share in enumerate(batches):
            assert share == [alone[place][row] for row in sampler.rows(place)]
            assert share
    together = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert together == alone[: len(together)]
    left_out = sum(map(len, alone)) - sum(map(len, together))
    assert left_out < num_processes
    # One process leaves out a last batch of a single sample.
    assert count - sum(map(len, alone)) == (count % (batch_size * num_processes) == 1)
