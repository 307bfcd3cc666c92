# TensorRT on a data-centre GPU. NVIDIA's container toolkit brings the driver; the libraries come from
# the package index. See docs/how-to/containers.md.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}
# A plan runs with the TensorRT that built it: so it is the same in all images of one deployment.
ARG TENSORRT=11.4.0.106
ARG EXTRAS=trt
COPY constraints.txt /tmp/constraints.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "tensorrt==${TENSORRT}" "$(echo /wheels/*.whl)[${EXTRAS}]" \
    && python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)" \
    && useradd --no-log-init --uid 10001 --create-home runner
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /data
ENTRYPOINT ["mimiq-deploy"]
CMD ["doctor"]
