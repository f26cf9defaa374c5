"""transformers' common tests of configurations and feature extractors.

Two more of its mixins do not apply. That of sequence feature extractors pads audio of one sampling rate, where ours
pads events (tests/modeling/test_feature_extraction.py). That of pipelines knows the tasks alone that come with
transformers, and takes its inputs from folders that the source distribution lacks (tests/modeling/test_pipeline.py).
"""

import unittest

from configuration_hymate import HyMaTEConfig
from modeling_hymate import HyMaTEFeatureExtractor
from tests.support.transformers_tests import common_tests

configuration = common_tests("test_configuration_common")
feature_extraction = common_tests("test_feature_extraction_common")


class TestConfiguration(unittest.TestCase):
    def test_configuration(self):
        tester = configuration.ConfigTester(
            self, config_class=HyMaTEConfig, has_text_modality=False, hidden_size=16, num_statistic_bins=2
        )
        tester.run_common_tests()


class TestFeatureExtractor(feature_extraction.FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = HyMaTEFeatureExtractor

    def setUp(self):
        self.feat_extract_dict = HyMaTEFeatureExtractor.fit(
            [{"time": [0.0, 2.0], "variable": ["HR", "GCS"], "value": [80.0, 15.0], "Age": 60.0}],
            ["HR", "GCS"],
            numeric_columns=["Age"],
        ).to_dict()
        self.feat_extract_dict.pop("feature_extractor_type")
