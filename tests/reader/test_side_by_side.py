import threading
import time

import pytest
import torch

from alignvlm.reader.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_results_come_in_order_from_several_threads(two_threads):
    seen = set()

    def work(number):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.02 * (number % 3))
        return number, torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        found = list(side_by_side(work, range(20), CPU))
    assert found == [(n, False, True) for n in range(20)]
    assert len(seen) == 2 and {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == 2


def test_gradients_stay_in_one_thread(two_threads):
    weight = torch.ones(3, requires_grad=True)
    idents = []

    def work(number):
        idents.append(threading.get_ident())
        return (weight * number).sum()

    sum(side_by_side(work, range(4), CPU)).backward()
    assert weight.grad.tolist() == [6.0] * 3
    assert set(idents) == {threading.get_ident()}


def test_who_stops_asking_ends_the_work(two_threads):
    done = []

    def work(number):
        time.sleep(0.01)
        done.append(number)
        return number

    with torch.no_grad():
        results = side_by_side(work, range(1000), CPU)
        assert next(results) == 0
        results.close()
    assert len(done) < 20
    assert torch.get_num_threads() == 2


def test_errors_come_through(two_threads):
    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    with torch.no_grad(), pytest.raises(ValueError, match="three"):
        list(side_by_side(work, range(9), CPU))
    assert torch.get_num_threads() == 2
