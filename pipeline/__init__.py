"""The domain: samples, views, video, models, the distillation method and its metrics."""
