/* SPDX-License-Identifier: Apache-2.0 */
/* The states of libvirt, and its reasons for them, in the words of the tree. */
#include "backends/libvirt/lv.h"

static const char *running_word(int reason)
{
	switch ((virDomainRunningReason)reason) {
	case VIR_DOMAIN_RUNNING_MIGRATED:
	case VIR_DOMAIN_RUNNING_POSTCOPY:
		return "migrated";
	case VIR_DOMAIN_RUNNING_RESTORED:
		return "restored";
	case VIR_DOMAIN_RUNNING_FROM_SNAPSHOT:
		return "from-snapshot";
	case VIR_DOMAIN_RUNNING_UNPAUSED:
		return "resumed";
	case VIR_DOMAIN_RUNNING_POSTCOPY_FAILED:
		return "migration-failed";
	case VIR_DOMAIN_RUNNING_UNKNOWN:
	case VIR_DOMAIN_RUNNING_BOOTED:
	case VIR_DOMAIN_RUNNING_MIGRATION_CANCELED:
	case VIR_DOMAIN_RUNNING_SAVE_CANCELED:
	case VIR_DOMAIN_RUNNING_WAKEUP:
	case VIR_DOMAIN_RUNNING_CRASHED:
		break;
	}
	return "started";
}

static LvState paused(int reason)
{
	switch ((virDomainPausedReason)reason) {
	case VIR_DOMAIN_PAUSED_CRASHED:
		return (LvState){ VM_CRASHED, "guest-panic" };
	case VIR_DOMAIN_PAUSED_IOERROR:
		return (LvState){ VM_PAUSED, "io-error" };
	case VIR_DOMAIN_PAUSED_WATCHDOG:
		return (LvState){ VM_PAUSED, "watchdog" };
	case VIR_DOMAIN_PAUSED_MIGRATION:
	case VIR_DOMAIN_PAUSED_POSTCOPY:
	case VIR_DOMAIN_PAUSED_POSTCOPY_FAILED:
		return (LvState){ VM_PAUSED, "migrating" };
	case VIR_DOMAIN_PAUSED_SAVE:
	case VIR_DOMAIN_PAUSED_DUMP:
	case VIR_DOMAIN_PAUSED_SNAPSHOT:
		return (LvState){ VM_PAUSED, "saving" };
	case VIR_DOMAIN_PAUSED_UNKNOWN:
	case VIR_DOMAIN_PAUSED_USER:
	case VIR_DOMAIN_PAUSED_FROM_SNAPSHOT:
	case VIR_DOMAIN_PAUSED_SHUTTING_DOWN:
	case VIR_DOMAIN_PAUSED_STARTING_UP:
		break;
	}
	return (LvState){ VM_PAUSED, "paused" };
}

static LvState shut_off(int reason)
{
	switch ((virDomainShutoffReason)reason) {
	case VIR_DOMAIN_SHUTOFF_SHUTDOWN:
		return (LvState){ VM_STOPPED, "guest-shutdown" };
	case VIR_DOMAIN_SHUTOFF_DESTROYED:
		return (LvState){ VM_STOPPED, "killed" };
	case VIR_DOMAIN_SHUTOFF_CRASHED:
		return (LvState){ VM_CRASHED, "vmm-died" };
	case VIR_DOMAIN_SHUTOFF_MIGRATED:
		return (LvState){ VM_STOPPED, "migrated" };
	case VIR_DOMAIN_SHUTOFF_FAILED:
		return (LvState){ VM_STOPPED, "start-failed" };
	case VIR_DOMAIN_SHUTOFF_SAVED: /* asleep only while the image is there */
	case VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT:
	case VIR_DOMAIN_SHUTOFF_DAEMON:
	case VIR_DOMAIN_SHUTOFF_UNKNOWN:
		break;
	}
	return (LvState){ VM_STOPPED };
}

LvState lv_state_of(int state, int reason)
{
	switch ((virDomainState)state) {
	case VIR_DOMAIN_RUNNING:
	case VIR_DOMAIN_BLOCKED:
		return (LvState){ VM_RUNNING, running_word(reason) };
	case VIR_DOMAIN_PAUSED:
		return paused(reason);
	case VIR_DOMAIN_SHUTDOWN:
		return (LvState){ VM_STOPPING, "guest-shutdown" };
	case VIR_DOMAIN_SHUTOFF:
		return shut_off(reason);
	case VIR_DOMAIN_CRASHED:
		return (LvState){ VM_CRASHED, "guest-panic" };
	case VIR_DOMAIN_PMSUSPENDED:
		return (LvState){ VM_PAUSED, "guest-suspended" };
	case VIR_DOMAIN_NOSTATE:
		break;
	}
	return (LvState){ VM_UNKNOWN, "no-state" };
}

LvState lv_state_with_sleep(LvState s, bool asleep)
{
	return s.state == VM_STOPPED && asleep ? (LvState){ VM_ASLEEP, "saved" } : s;
}

bool lv_state_now(virDomainPtr dom, LvState *ret)
{
	int state, reason;

	if (virDomainGetState(dom, &state, &reason, 0))
		return false;
	*ret = lv_state_with_sleep(lv_state_of(state, reason),
				   virDomainHasManagedSaveImage(dom, 0) > 0);
	if (ret->state == VM_RUNNING || ret->state == VM_PAUSED)
		ret->pid = lv_pid(dom);
	return true;
}

static LvState stopped(int detail)
{
	switch ((virDomainEventStoppedDetailType)detail) {
	case VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN:
		return shut_off(VIR_DOMAIN_SHUTOFF_SHUTDOWN);
	case VIR_DOMAIN_EVENT_STOPPED_DESTROYED:
		return shut_off(VIR_DOMAIN_SHUTOFF_DESTROYED);
	case VIR_DOMAIN_EVENT_STOPPED_MIGRATED:
		return shut_off(VIR_DOMAIN_SHUTOFF_MIGRATED);
	case VIR_DOMAIN_EVENT_STOPPED_SAVED:
		return (LvState){ VM_ASLEEP, "saved" };
	case VIR_DOMAIN_EVENT_STOPPED_CRASHED:
	case VIR_DOMAIN_EVENT_STOPPED_FAILED: /* of a start, or of the VMM: that is to be asked */
	case VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT:
		break;
	}
	return (LvState){ VM_STATE_MAX };
}

LvState lv_state_of_event(int event, int detail)
{
	switch ((virDomainEventType)event) {
	case VIR_DOMAIN_EVENT_STARTED:
		/* Its memory is to come: until then it runs where it was. */
		if (detail == VIR_DOMAIN_EVENT_STARTED_MIGRATED)
			break;
		return (LvState){ VM_RUNNING, "started" };
	case VIR_DOMAIN_EVENT_RESUMED:
		if (detail == VIR_DOMAIN_EVENT_RESUMED_MIGRATED)
			return (LvState){ VM_RUNNING, "migrated", .arrived = true };
		return (LvState){ VM_RUNNING, "resumed" };
	case VIR_DOMAIN_EVENT_SUSPENDED:
		if (detail == VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
			return (LvState){ VM_PAUSED, "paused" };
		break;
	case VIR_DOMAIN_EVENT_STOPPED:
		return stopped(detail);
	case VIR_DOMAIN_EVENT_SHUTDOWN:
		return (LvState){ VM_STOPPING, "guest-shutdown" };
	case VIR_DOMAIN_EVENT_PMSUSPENDED:
		return (LvState){ VM_PAUSED, "guest-suspended" };
	case VIR_DOMAIN_EVENT_DEFINED:
	case VIR_DOMAIN_EVENT_UNDEFINED:
	case VIR_DOMAIN_EVENT_CRASHED:
		break;
	}
	return (LvState){ VM_STATE_MAX };
}
