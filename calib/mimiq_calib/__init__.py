"""Data-free calibration in torch: conversion, quantizers, image synthesis, distillation."""
