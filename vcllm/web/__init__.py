"""What every service shares on the wire: app factory, health, streams, clients, replicas."""
