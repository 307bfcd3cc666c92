# ONNX Runtime and OpenVINO on CPUs: Intel, AMD and Arm. See docs/how-to/containers.md.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}
ARG EXTRAS=ort,openvino,report
COPY constraints.txt /tmp/constraints.txt
# The wheel is mounted and not copied: it would stay in the image a second time.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]" \
    && python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)" \
    && useradd --no-log-init --uid 10001 --create-home runner
USER 10001
WORKDIR /data
ENTRYPOINT ["mimiq-deploy"]
CMD ["doctor"]
