"""What the tasks read and write."""

from django.db import models


class Thing(models.Model):
    name = models.CharField(max_length=100)


class Note(models.Model):
    """What handlers and receivers write."""

    task_id = models.CharField(max_length=100)
    text = models.CharField(max_length=100)
