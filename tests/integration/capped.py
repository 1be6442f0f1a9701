"""Workers with caps: a start, and what runs and waits there."""

from worker import wait_for

TIMEOUT = 60
SLOTS = 6
SCRAPE, PDF = "apps.caps.scrape", "apps.caps.pdf_*"


def start(start_worker, transport, *conf):
    return start_worker(
        transport,
        *("caps", "-c", SLOTS, "--processes", 2),
        env={"CAPS_CONF": "; ".join(["worker_prefetch_multiplier=1", *conf])},
    )


def counts(worker, cap=SCRAPE):
    """How many run and wait."""
    info = worker.pool()["limits"][cap]
    return info["running"], info["waiting"]


def wait_counts(worker, running, waiting, cap=SCRAPE):
    wait_for(
        lambda: counts(worker, cap) == (running, waiting),
        lambda: f"{running} running, {waiting} waiting: {counts(worker, cap)}\n{worker.tail()}",
    )


def wait_idle(worker):
    """Nothing runs, nothing waits, and all slots and places are free again."""
    wait_counts(worker, 0, 0)
    wait_counts(worker, 0, 0, PDF)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


def most_at_once(worker, *results, killed=()):
    """How many bodies of *results* ran at once, at most, but for those of *killed* processes."""
    ids = {result.id for result in results}
    running, most = set(), 0
    for line in worker.records():
        if line.get("id") not in ids or line["pid"] in killed:
            continue
        if line["what"] == "started":
            running.add(line["id"])
        else:
            running.discard(line["id"])
        most = max(most, len(running))
    return most


def send_held(worker, gate, count, *tasks):
    """Send *count* of the *tasks* in turn, which end when there is a *gate*."""
    tasks = tasks or ("scrape",)
    return [worker.client.send(tasks[n % len(tasks)], str(gate)) for n in range(count)]


def hold(worker, gate, waiting):
    """Two scrapes that run, and then as many that wait as *waiting*."""
    results = send_held(worker, gate, 2)
    worker.wait_started(*results)
    results += send_held(worker, gate, waiting)
    wait_counts(worker, 2, waiting)
    return results


def all_done(results):
    return [result.get(timeout=TIMEOUT) for result in results] == ["done"] * len(results)
