"""Tasks with all kinds of parameters, decorators and results."""

import asyncio

from .base import make_app

app = make_app("arguments")


# Names.


@app.task
async def async_names(**kwargs):
    await asyncio.sleep(0)
    return kwargs


@app.task
def def_names(**kwargs):
    return kwargs


@app.task(bind=True, autoretry_for=(KeyError,))
async def async_bound_names(this, /, **kwargs):
    return kwargs


@app.task(bind=True, autoretry_for=(KeyError,))
def def_bound_names(this, /, **kwargs):
    return kwargs


class Called(app.Task):
    """Overrides `__call__`, as Flask's documentation has it."""

    abstract = True

    def __call__(self, /, *args, **kwargs):
        return self.run(*args, **kwargs)


@app.task(base=Called)
async def async_called_names(**kwargs):
    return kwargs


@app.task(base=Called)
def def_called_names(**kwargs):
    return kwargs


@app.task
async def async_assign(task, function=None, user=None):
    return [task, function, user]


@app.task
def def_assign(task, function=None, user=None):
    return [task, function, user]
