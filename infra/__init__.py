"""What carries the platform from a laptop to a cluster: local cluster mode, manifests, images, dashboards."""
