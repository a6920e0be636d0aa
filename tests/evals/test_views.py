"""Fine-tuning's evaluation of several views of each clip, from records to metrics."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sk

from mmjax import config, sharding
from mmjax.configs.finetune import demo
from mmjax.data import loader
from mmjax.evals import make_evaluators
from mmjax.tasks import DataFacts, make_task

VIDEO = dict(num_frames=4, size=32, scale_jitter=False, flip=False)
VIEWS = {
    # Four clips, and three crops of each.
    "video": (
        dict(video=VIDEO),
        "world:tiny,num_frames=14,train=8,test=21",
        dict(multi_crop=True),
        12,
    ),
    # Four windows of sound; five labels for each.
    "audio": (dict(audio=dict(num_samples=1600)), "world:tiny,label=all,train=8,test=21", {}, 4),
}


class Case:
    def __init__(self, modality):
        section, self.data, options, self.views = VIEWS[modality]
        cfg = demo.get_config("smoke")
        multi_label = modality == "audio"
        label = dict(multi_label=multi_label)
        cfg.data = dict(train=self.data, split="train", label=label, **section)
        if modality == "audio":
            audio = dict(name="spt_tiny", num_layers=2, patch_size=(4, 16), buckets=(4, 2))
            cfg.model = dict(name="classifier", backbone=audio)
            cfg.augment = dict(spectrogram=dict(window=0.032, step=0.0125, num_bins=32))
            cfg.loss = dict(label_smoothing=0.0)
        self.cfg, self.modality = config.plain(cfg), modality
        self.changes = {modality: dict(num_clips=4, **options)}
        data = loader.make_train_data(self.cfg["data"], batch_size=8, seed=0)
        self.task = make_task(cfg, DataFacts.of(data))
        params, extra = self.task.init(jax.random.key(0))
        # The classifier begins at zero or a constant: let every class have its own logits.
        params["classifier"]["kernel"] = 0.3 * jax.random.normal(
            jax.random.key(1), params["classifier"]["kernel"].shape
        )
        self.state = {"params": params, "extra": extra}

    def run(self, batch_size):
        (evaluator,) = make_evaluators(
            dict(
                test=dict(
                    type="classification",
                    data=self.data,
                    batch_size=batch_size,
                    views=self.changes,
                )
            ),
            task=self.task,
            data_cfg=self.cfg["data"],
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        )
        features = evaluator.store.get(self.state, evaluator.requests[0])
        return features, evaluator.run(self.state, 1)

    def by_hand(self):
        """Logits [N, V, C] and labels, one example at a time."""
        section = dict(self.cfg["data"])
        section[self.modality] = section[self.modality] | self.changes[self.modality]
        module = self.task.model.bind(self.state["params"], self.state["extra"])

        @jax.jit
        def classify(views):
            inputs = self.task._inputs({self.modality: views}, None, train=False)
            pooled = module.encode(inputs, key=None, train=False)
            return module.classify(pooled, key=None, train=False)

        logits, labels = [], []
        for batch in loader.make_eval_data(section, data=self.data, batch_size=1).iterate():
            logits.append(np.asarray(classify(batch[self.modality][0])))
            labels.append(batch["label"][0])
        return np.stack(logits), np.stack(labels)


@pytest.mark.parametrize("modality", VIEWS)
def test_logits_are_averaged_over_the_views_of_each_example(modality):
    case = Case(modality)
    each, labels = case.by_hand()
    assert each.shape[:2] == (21, case.views) and each.std(axis=1).max() > 1e-3  # they differ
    logits = each.mean(axis=1)
    features, found = case.run(batch_size=8)  # of which 21 is no multiple
    np.testing.assert_allclose(features.arrays["logits"], logits, atol=1e-5)
    np.testing.assert_array_equal(features.label, labels)
    got = {name.removeprefix("test/"): value for name, value in found.items()}
    if modality == "video":
        assert got["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
        top5 = (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(1).mean()
        assert got["top5"] == pytest.approx(top5)
        return
    probs = 1 / (1 + np.exp(-logits))  # of the mean logits, not the mean of probabilities
    both = (labels.max(0) > 0) & (labels.min(0) < 1)
    assert got["skipped_classes"] == (~both).sum()
    for name, of in (("mAP", sk.average_precision_score), ("AUC", sk.roc_auc_score)):
        assert got[name] == pytest.approx(of(labels[:, both], probs[:, both], average="macro"))
    assert got["loss"] == pytest.approx(
        -np.mean(labels * np.log(probs) + (1 - labels) * np.log(1 - probs)), rel=1e-4
    )
