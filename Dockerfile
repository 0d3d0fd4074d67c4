# docker build --tag scalelab .
# docker run --rm --interactive --tty --gpus all --ipc host --volume "$PWD/out:/scalelab/out" scalelab bash
#
# --build-arg EXTRAS=dev                     for machines without a GPU: torch's build for CPUs
# --build-arg EXTRAS=gpu,kernels and --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
#                                            with kernels: two of them are compiled, by the nvcc of this base
#
# Tried: the commands of both RUN lines, one after the other in a new Debian 12 (debootstrap, Python 3.11, no GPU). Not
# tried: a build by Docker, and the bases named here, for there was no Docker daemon at hand. torch's wheels
# bring CUDA's libraries, so the small base is enough for GPUs; the host needs the driver and NVIDIA's container toolkit.
ARG BASE=python:3.12-slim
FROM ${BASE}

# A compiler for torch.compile and Triton; git, by which a run notes the commit. A base without Python gets Debian's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git make \
    && (python3 -c 'import ensurepip' || apt-get install --yes --no-install-recommends python3-venv python3-dev) \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /scalelab
COPY . .
ARG EXTRAS=dev,gpu
RUN PIP_NO_CACHE_DIR=1 EXTRAS="$EXTRAS" bash install.sh
ENV PATH="/scalelab/.venv/bin:$PATH"
CMD ["python", "-m", "lit_gpt.tools.inspect", "env"]
