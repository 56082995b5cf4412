"""Networks to start from."""

from penjing.models.lenet import conv_n, glorot_normal_, lenet5, lenet_300_100
from penjing.models.plain_cnn import plain_cnn
from penjing.models.resnet_cifar import resnet_cifar
from penjing.models.sentence_encoder import sentence_encoder

__all__ = ["conv_n", "glorot_normal_", "lenet5", "lenet_300_100", "plain_cnn", "resnet_cifar", "sentence_encoder"]
