"""Networks to start from."""

from penjing.models.ghostnet import ghostnet
from penjing.models.lenet import conv_n, glorot_normal_, lenet5, lenet_300_100
from penjing.models.mobilenet import mobilenet
from penjing.models.msdnet import msdnet
from penjing.models.plain_cnn import plain_cnn
from penjing.models.resnet_cifar import resnet_cifar
from penjing.models.sentence_encoder import sentence_encoder
from penjing.models.shallow import shallow_net
from penjing.models.shufflenet import shufflenet
from penjing.models.squeezenet import squeezenet
from penjing.models.xception import xception

__all__ = [
    "conv_n",
    "ghostnet",
    "glorot_normal_",
    "lenet5",
    "lenet_300_100",
    "mobilenet",
    "msdnet",
    "plain_cnn",
    "resnet_cifar",
    "sentence_encoder",
    "shallow_net",
    "shufflenet",
    "squeezenet",
    "xception",
]
