"""Facts about this host that the guest cannot find out."""
import fcntl
import os

KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_GET_TSC_KHZ = 0xAEA3


def kvm_usable():
    return os.access('/dev/kvm', os.R_OK | os.W_OK)


def tsc_khz():
    """Frequency of the time stamp counter, or None if KVM cannot be asked."""
    opened = []
    try:
        opened.append(os.open('/dev/kvm', os.O_RDWR | os.O_CLOEXEC))
        opened.append(fcntl.ioctl(opened[0], KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[1], KVM_CREATE_VCPU, 0))
        return fcntl.ioctl(opened[2], KVM_GET_TSC_KHZ, 0) or None
    except OSError:
        return None
    finally:
        for fd in reversed(opened):
            os.close(fd)
