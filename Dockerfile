# Two images: docker build --target cuda -t flowrl:cuda .   and   docker build --target cpu -t flowrl:cpu .
# How to run them: docs/docker.md. Where flowrl is written there is no Docker: this file was read and its installs resolved,
# but it was not built.
FROM python:3.12-slim AS base
# bubblewrap: the sandbox of code_tests. g++: torch.compile and Triton. socat: the live page through a mapped port.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ socat \
    && rm -rf /var/lib/apt/lists/*
# Everything that is kept between containers is below /cache; any user may write there, so that --user works.
ENV HOME=/cache \
    HF_HOME=/cache/huggingface \
    FLOWRL_CACHE=/cache/flowrl \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1
RUN useradd --uid 1000 --home-dir /cache --no-create-home flowrl \
    && mkdir /cache /work \
    && chmod 1777 /cache /work
WORKDIR /flowrl
COPY pyproject.toml README.md LICENSE ./
COPY flowrl flowrl
COPY rewards rewards
COPY configs /work/configs

FROM base AS cpu
# A release with the suffix +cpu comes before the same one without it, which brings CUDA.
RUN pip install -c flowrl/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    '.[rewards,text,data,server,tracking,quantize,optimizers]'
USER flowrl
WORKDIR /work
VOLUME /cache
CMD ["flowrl", "doctor"]

FROM base AS cuda
# torch from the Python index brings the CUDA libraries; the driver is the host's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install -c flowrl/constraints.txt '.[rewards,text,data,server,tracking,quantize,optimizers]'
USER flowrl
WORKDIR /work
VOLUME /cache
CMD ["flowrl", "doctor"]
