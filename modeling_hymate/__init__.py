"""HyMaTE for Hugging Face transformers. Importing this package registers the model with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_hymate import HyMaTEConfig
from .events import Events
from .feature_extraction_hymate import HyMaTEFeatureExtractor
from .modeling_hymate import (
    HyMaTEForPreTraining,
    HyMaTEForPreTrainingOutput,
    HyMaTEForSequenceClassification,
    HyMaTEForSequenceClassificationOutput,
    HyMaTEModel,
    HyMaTEModelOutput,
    HyMaTEPreTrainedModel,
)
from .pipeline_hymate import TASK, HyMaTEPipeline
from .scan import selective_scan
from .stream import Stream
from .streaming import StreamState

AutoConfig.register("hymate", HyMaTEConfig, exist_ok=True)
AutoModel.register(HyMaTEConfig, HyMaTEModel, exist_ok=True)
AutoModelForPreTraining.register(HyMaTEConfig, HyMaTEForPreTraining, exist_ok=True)
AutoModelForSequenceClassification.register(HyMaTEConfig, HyMaTEForSequenceClassification, exist_ok=True)
AutoFeatureExtractor.register(HyMaTEConfig, HyMaTEFeatureExtractor, exist_ok=True)
AutoProcessor.register(HyMaTEConfig, HyMaTEFeatureExtractor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(TASK, HyMaTEPipeline, pt_model=AutoModelForSequenceClassification)

# What is registered here is copied, with the files it imports, into every folder that save_pretrained writes, so that
# the folder loads with trust_remote_code=True where this package is not installed.
HyMaTEConfig.register_for_auto_class("AutoConfig")
HyMaTEModel.register_for_auto_class("AutoModel")
HyMaTEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
HyMaTEForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
HyMaTEFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = [
    "Events",
    "HyMaTEConfig",
    "HyMaTEFeatureExtractor",
    "HyMaTEForPreTraining",
    "HyMaTEForPreTrainingOutput",
    "HyMaTEForSequenceClassification",
    "HyMaTEForSequenceClassificationOutput",
    "HyMaTEModel",
    "HyMaTEModelOutput",
    "HyMaTEPipeline",
    "HyMaTEPreTrainedModel",
    "Stream",
    "StreamState",
    "selective_scan",
]
