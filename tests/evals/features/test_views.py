"""Multi-view evaluation of fine-tuned models, from records to metrics."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sk

from mmjax import config, sharding
from mmjax.configs.finetune import demo
from mmjax.data.pipeline import loader
from mmjax.data_spec import DataSpec
from mmjax.evals import make_evaluators
from mmjax.tasks import make_task

VIDEO = dict(num_frames=4, size=32, scale_jitter=False, flip=False)
VIEWS = {
    # Four clips with three crops each.
    "video": (
        dict(video=VIDEO),
        "world:tiny,num_frames=14,train=8,test=21",
        dict(multi_crop=True),
        12,
    ),
    # Four audio windows with five labels each.
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
        self.view_options = {modality: dict(num_clips=4, **options)}
        data = loader.make_train_data(self.cfg["data"], batch_size=8, seed=0)
        self.task = make_task(cfg, DataSpec.of(data))
        params, extra = self.task.init(jax.random.key(0))
        # The kernel is initialized to zero or a constant; random values give distinct logits.
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
                    views=self.view_options,
                )
            ),
            task=self.task,
            data_cfg=self.cfg["data"],
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        )
        features = evaluator.store.get(self.state, evaluator.requests[0])
        return features, evaluator.run(self.state, 1)

    def reference(self):
        """Logits [N, V, C] and labels, computed one example at a time."""
        section = dict(self.cfg["data"])
        section[self.modality] = section[self.modality] | self.view_options[self.modality]
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
    view_logits, labels = case.reference()
    assert view_logits.shape[:2] == (21, case.views)
    assert view_logits.std(axis=1).max() > 1e-3  # the views differ
    logits = view_logits.mean(axis=1)
    features, results = case.run(batch_size=8)  # does not divide 21
    np.testing.assert_allclose(features.arrays["logits"], logits, atol=1e-5)
    np.testing.assert_array_equal(features.label, labels)
    actual = {name.removeprefix("test/"): value for name, value in results.items()}
    if modality == "video":
        assert actual["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
        top5 = (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(1).mean()
        assert actual["top5"] == pytest.approx(top5)
        return
    probs = 1 / (1 + np.exp(-logits))  # probabilities of the mean logits, not mean probabilities
    both = (labels.max(0) > 0) & (labels.min(0) < 1)
    assert actual["skipped_classes"] == (~both).sum()
    for name, metric in (("mAP", sk.average_precision_score), ("AUC", sk.roc_auc_score)):
        assert actual[name] == pytest.approx(
            metric(labels[:, both], probs[:, both], average="macro")
        )
    assert actual["loss"] == pytest.approx(
        -np.mean(labels * np.log(probs) + (1 - labels) * np.log(1 - probs)), rel=1e-4
    )
