"""MONAI networks as ART estimators: classifiers, multi-label classifiers and segmenters, 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.estimators.pytorch import PyTorchEstimator
from monai.inferers import Inferer
from torch import Tensor, nn

from medadv.adapters.base import LossFunction, MonaiEstimator, check_input_shape, clip_values_of, device_of
from medadv.adapters.deployed import DeployedModel, TwoClassView
from medadv.adapters.heads import Head
from medadv.adapters.views import (
    DiceMarginView,
    LabelsMarginView,
    OneLabelView,
    QueryView,
    cross_entropy_of_probabilities,
)
from medadv.adapters.windows import WINDOW_MEMORY, WindowedVictim, sliding_inferer_of
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity
from medadv.numbers import whole_number
from medadv.objectives import LossObjective
from medadv.victims import ModuleVictim, SegmenterMixin, left_as_found


class MonaiClassifier(MonaiEstimator, PyTorchClassifier):
    """An image-level network with exclusive classes, as ART's ``PyTorchClassifier``: all of ART's attacks accept it.

    A one-logit network is declared by ``decision=Multilabel(1)`` and shown as two classes
    ``[0, z - logit(threshold)]``; its decision is then ``Multiclass(2)``.

    Args:
        network: images ``(N, C, *S)`` -> logits ``(N, num_classes)`` (tensor, list, tuple or dict).
        input_shape: ``(C, H, W)`` or ``(C, H, W, D)``.
        decision: ``Multiclass`` or ``Multilabel(1)``.
        intensity: range and unit of the images as they are stored.
        loss: MONAI or torch loss for :meth:`fit` and ART's gradients; default: cross-entropy.
        optimizer: for :meth:`fit`; default: Adam, 1e-3.
        inferer: MONAI inferer; default: the network on the whole image.
        input_transform: windowing or normalisation that belongs to the model (differentiable).
        head: index, key or function that picks the logits where the network's output does not tell.
        device: default: where the network is.
        search_precision: ``"bfloat16"``: attacks compute gradients in it, by autocast, while what scores images and
            decides which is kept stays in float32. Faster on hardware made for it. None: the network's own.

    Raises:
        ValueError, TypeError: arguments that don't fit each other; the message says which.

    Example:
        >>> import numpy as np, torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> estimator = MonaiClassifier(net, (1, 8, 8), decision=Multiclass(3))
        >>> estimator.predict(np.zeros((2, 1, 8, 8), dtype=np.float32)).shape
        (2, 3)
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...],
        *,
        decision: Decision,
        intensity: Intensity = Intensity(0.0, 1.0),
        loss: LossFunction | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        inferer: Inferer | None = None,
        input_transform: Callable[[Any], Any] | None = None,
        head: Head = None,
        device: torch.device | str | None = None,
        search_precision: str | None = None,
    ) -> None:
        check_input_shape(input_shape)
        model: nn.Module = DeployedModel(
            network,
            channels=decision.channels,
            segments=False,
            input_transform=input_transform,
            inferer=inferer,
            head=head,
        )
        if isinstance(decision, Multilabel):
            model, decision = self._two_classes(model, decision, loss)
            loss = None
        place = device_of(network, device)
        PyTorchClassifier.__init__(
            self,
            model=model,
            loss=nn.CrossEntropyLoss() if loss is None else loss,
            input_shape=tuple(input_shape),
            nb_classes=decision.channels,
            optimizer=optimizer,
            clip_values=clip_values_of(intensity, len(input_shape) - 1),
            preprocessing=None,
            device_type="gpu" if place.type == "cuda" else "cpu",
        )
        self._device = place
        self._model.to(place)
        self._describe(decision, intensity, loss, "ce", segments=False, search_precision=search_precision)

    @staticmethod
    def _two_classes(model: nn.Module, decision: Multilabel, loss: Any) -> tuple[nn.Module, Multiclass]:
        if decision.num_labels != 1 or decision.ignore_index is not None:
            raise ValueError(
                f"MonaiClassifier is for exclusive classes or one logit, got {decision}; use MonaiMultilabelClassifier."
            )
        if loss is not None and not (
            isinstance(loss, nn.BCEWithLogitsLoss) and loss.pos_weight is None and loss.weight is None
        ):
            raise ValueError(
                "a one-logit network is shown as two classes, whose cross-entropy equals BCEWithLogitsLoss; leave loss "
                "out, or give the network two outputs to use another loss."
            )
        threshold = decision.threshold[0] if isinstance(decision.threshold, tuple) else decision.threshold
        return TwoClassView(model, threshold), Multiclass(2)

    @property
    def model(self) -> nn.Module:
        """The deployed model: one module, never ``nn.Sequential``, as ART rebuilds classifiers from it."""
        return self._model._model

    def class_gradient(
        self, x: np.ndarray, label: Any = None, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray:
        """Gradient of logits to the images.

        Args:
            x: images ``(N, C, *S)``.
            label: None: all classes; a class; or one class per image.

        Returns:
            ``(N, num_classes, C, *S)``, or ``(N, 1, C, *S)`` where ``label`` is given.
        """
        images = self._images(x)
        if label is None:
            wanted = [torch.full((len(images),), c, device=self._device) for c in range(self.nb_classes)]
        else:
            labels = np.broadcast_to(np.asarray(label), (len(images),)).astype(np.int64)
            if labels.min() < 0 or labels.max() >= self.nb_classes:
                raise ValueError(f"label={label} is no class; give numbers from 0 to {self.nb_classes - 1}.")
            wanted = [torch.from_numpy(labels.copy()).to(self._device)]
        leaf = images.detach().requires_grad_()
        with left_as_found(self.model), torch.enable_grad():
            self.model.train(training_mode)
            logits = self.model(leaf)
            grads = [
                torch.autograd.grad(logits.gather(1, c[:, None]).sum(), leaf, retain_graph=i + 1 < len(wanted))[0]
                for i, c in enumerate(wanted)
            ]
        return torch.stack(grads, 1).cpu().numpy()

    def as_classifier(self, *, probabilities: bool = False, saturate: bool = False) -> MonaiClassifier:
        """The same model for those of ART's attacks that ask for more than logits of valid images.

        Args:
            probabilities: softmax at the end, for SimBA and NewtonFool. Gradient attacks are better run on logits.
            saturate: images outside the range are not refused but read as if cut off at its ends, as a file would store
                them; for UniversalPerturbation, NewtonFool and ZOO, which evaluate such images on their way.
        """
        view = MonaiClassifier(
            QueryView(self.model, self.intensity, probabilities=probabilities, saturate=saturate),
            self.input_shape,
            decision=self.decision,
            intensity=self.intensity,
            loss=cross_entropy_of_probabilities if probabilities else self._loss,
            device=self._device,
        )
        if saturate:
            view._range_tolerance = math.inf
        return view

    def __getstate__(self) -> dict[str, Any]:
        # ART's own writes the weights to a file in its data folder and can restore them on this machine only
        state = self.__dict__.copy()
        state["_model"] = self.model
        state.pop("_model_wrapper", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._model = self._make_model_wrapper(state["_model"])


class DenseEstimator(MonaiEstimator):
    """What multi-label classifiers and segmenters share: ART estimators that are not ART classifiers.

    With ``ClassifierMixin`` ART's DeepFool, CarliniL2 and APGD would run on their targets without an error, and
    wrongly; their ``as_classifier`` gives those attacks a view that is right.
    """

    estimator_params = [*PyTorchEstimator.estimator_params, "input_shape"]

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...],
        *,
        decision: Decision,
        intensity: Intensity = Intensity(0.0, 1.0),
        loss: LossFunction | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        inferer: Inferer | None = None,
        input_transform: Callable[[Any], Any] | None = None,
        output_transform: Callable[[Tensor], Tensor] | None = None,
        head: Head = None,
        device: torch.device | str | None = None,
        search_precision: str | None = None,
        segments: bool,
    ) -> None:
        check_input_shape(input_shape)
        place = device_of(network, device)
        model = DeployedModel(
            network,
            channels=decision.channels,
            segments=segments,
            input_transform=input_transform,
            inferer=inferer,
            head=head,
            output_transform=output_transform,
        )
        super().__init__(
            model=model.to(place),
            clip_values=clip_values_of(intensity, len(input_shape) - 1),
            channels_first=True,
            preprocessing=None,
            device_type="gpu" if place.type == "cuda" else "cpu",
        )
        self._device = place
        self._input_shape = tuple(input_shape)
        self._optimizer = optimizer
        default = "dicece" if segments else "ce"
        self._describe(decision, intensity, loss, default, segments=segments, search_precision=search_precision)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, ``(C, *S)``."""
        return self._input_shape

    @property
    def loss(self) -> Any:
        """The loss given by the user, or medadv's default."""
        return self.loss_objective.loss if isinstance(self.loss_objective, LossObjective) else self.loss_objective

    def _as_two_classes(self, view: nn.Module, *, probabilities: bool, saturate: bool) -> MonaiClassifier:
        classifier = MonaiClassifier(
            view, self.input_shape, decision=Multiclass(2), intensity=self.intensity, device=self._device
        )
        if probabilities or saturate:
            return classifier.as_classifier(probabilities=probabilities, saturate=saturate)
        return classifier


class MonaiMultilabelClassifier(DenseEstimator):
    """An image-level network whose labels do not exclude each other.

    ART's gradient attacks that need no classifier run on it directly; ART's classifier attacks run on
    :meth:`as_classifier`.

    Args:
        network: images -> logits ``(N, num_labels)``.
        input_shape: ``(C, H, W)`` or ``(C, H, W, D)``.
        decision: ``Multilabel``.
        intensity, loss, optimizer, inferer, input_transform, head, device, search_precision: as in
            :class:`MonaiClassifier`; the default loss is binary cross-entropy.

    Example:
        >>> import numpy as np, torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
        >>> estimator = MonaiMultilabelClassifier(net, (1, 8, 8), decision=Multilabel(5))
        >>> estimator.predict(np.zeros((2, 1, 8, 8), dtype=np.float32)).shape
        (2, 5)
    """

    def __init__(
        self, network: nn.Module, input_shape: tuple[int, ...], *, decision: Multilabel, **kwargs: Any
    ) -> None:
        if not isinstance(decision, Multilabel):
            raise TypeError(
                f"a multi-label classifier needs decision=Multilabel(...), got {decision}; use MonaiClassifier."
            )
        super().__init__(network, input_shape, decision=decision, segments=False, **kwargs)

    def as_classifier(
        self, *, label: int | None = None, reference: Any = None, probabilities: bool = False, saturate: bool = False
    ) -> MonaiClassifier:
        """A two-class view for ART's classifier attacks.

        Args:
            label: one label: class 1 where it is given, 0 where not.
            reference: the labels of one image ``(num_labels,)`` or ``(1, num_labels)``: class 0 while all labels are
                as in it, class 1 once one differs.
            probabilities, saturate: as in :meth:`MonaiClassifier.as_classifier`.

        Raises:
            ValueError: not exactly one of the two, or a label that does not exist.
        """
        decision = self.decision
        assert isinstance(decision, Multilabel)
        if (label is None) == (reference is None):
            raise ValueError("give either label= (one label as two classes) or reference= (all labels of one image).")
        if label is not None:
            if not 0 <= label < decision.num_labels:
                raise ValueError(f"label={label} does not exist; give 0 to {decision.num_labels - 1}.")
            view: nn.Module = OneLabelView(self.model, decision, label)
        else:
            target, _ = decision.canonical(np.asarray(reference).reshape(1, -1), device=self._device)
            view = LabelsMarginView(self.model, decision, target)
        return self._as_two_classes(view, probabilities=probabilities, saturate=saturate)


class MonaiSegmenter(SegmenterMixin, DenseEstimator):
    """A network with one diagnosis per voxel: exclusive classes, or overlapping regions.

    Args:
        network: images ``(N, C_in, *S)`` -> logits ``(N, C, *S)``.
        input_shape: ``(C_in, H, W)`` or ``(C_in, H, W, D)``.
        decision: ``Multiclass(n, background=0)`` for a softmax, ``Multilabel(n)`` for sigmoids.
        intensity, optimizer, inferer, input_transform, head, device, search_precision: as in :class:`MonaiClassifier`.
        loss: MONAI or torch loss; default: soft foreground Dice per case plus cross-entropy.
        output_transform: where ``input_transform`` moves voxels: logits on the grid that the network sees -> logits on
            that of the image, differentiable.
        window_memory: with a sliding-window inferer, bytes of activations that an attack may keep; windows beyond it
            run twice (:class:`~medadv.adapters.windows.WindowedVictim`).

    Example:
        >>> import numpy as np
        >>> from monai.networks.nets import UNet
        >>> from medadv.attacks import create
        >>> net = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> segmenter = MonaiSegmenter(net, (1, 8, 8, 8), decision=Multiclass(2, background=0))
        >>> x = np.random.default_rng(0).random((1, 1, 8, 8, 8), dtype=np.float32)
        >>> y = (x[:, 0] > 0.5).astype(int)
        >>> x_adv = create("pgd-dice", segmenter, eps="4/255", max_iter=2).generate(x, y)
        >>> bool(np.abs(x_adv - x).max() <= 4 / 255)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...],
        *,
        decision: Decision,
        window_memory: int = WINDOW_MEMORY,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, input_shape, decision=decision, segments=True, **kwargs)
        whole_number("window_memory", window_memory, 0)
        self.window_memory = window_memory

    def victim(self) -> ModuleVictim:
        """The model as medadv's attacks see it; windows of a sliding-window inferer are differentiated one by one."""
        if sliding_inferer_of(self.model) is None:
            return super().victim()
        return WindowedVictim(
            self.model, self.decision, self.intensity, segments=True, memory=self.window_memory,
            search=self._search,
        )  # fmt: skip

    def as_classifier(
        self,
        *,
        reference: Any,
        label: int | None = None,
        threshold: float = 0.5,
        probabilities: bool = False,
        saturate: bool = False,
    ) -> MonaiClassifier:
        """A two-class view of one case for ART's classifier attacks: class 0 while it is segmented well, 1 once broken.

        Args:
            reference: the mask of one case, in any usual form.
            label: Dice of this class only; default: all foreground classes in the reference.
            threshold: hard Dice below which the case counts as broken.
            probabilities, saturate: as in :meth:`MonaiClassifier.as_classifier`.

        Raises:
            ValueError: more than one case, a label without a voxel in the reference, or a threshold outside (0, 1].
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a Dice above 0 and at most 1.")
        array = np.asarray(reference.cpu() if isinstance(reference, Tensor) else reference)
        if array.ndim == len(self.input_shape) - 1:
            array = array[None]
        spatial = tuple(array.shape[-(len(self.input_shape) - 1) :])
        target, valid = self.decision.canonical(array, spatial, device=self._device)
        if len(target) != 1:
            raise ValueError(f"the view is of one case, got references of {len(target)}; make one view per case.")
        decision = self.decision if label is None else replace(self.decision, scored=(label,))  # type: ignore[type-var]
        if bool(decision.score_hard(target, target, valid).isnan()):
            raise ValueError(
                "the reference has no voxel of what is to be scored; a negative case has no Dice to break."
            )
        view = DiceMarginView(self.model, decision, target, valid, threshold=threshold)
        return self._as_two_classes(view, probabilities=probabilities, saturate=saturate)
