"""Transforms of the package's own."""

from girder_dask.transforms import ResultTransform, Transform


class Shouted(Transform):
    """A text in capitals."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def _repr_model_(self):
        return f"Shouted({self.text!r})"

    def transform(self):
        return self.text.upper()

    def cleanup(self):
        print("the shouting is over")


class Announced(ResultTransform):
    """Says in the log what came of the job."""

    def transform(self, data):
        print(f"{self.job['title']} returned {data!r}")
        return data

    def exception(self):
        print("there is nothing to announce")


class Unannounced(ResultTransform):
    """Fails, hears of it, and cleans up."""

    def transform(self, data):
        raise ValueError("nobody listens" if data else "nothing to hear")

    def exception(self):
        print("nothing was announced")

    def cleanup(self):
        print("the stage is empty")
