/*
 * What this plugin adds to Girder's pages: on that of a job its states, progress, parent,
 * children and artifacts, and a page for the settings.
 */
(function () {
    'use strict';

    const MOST_CHILDREN = 20;
    const CHILDREN_INTERVAL = 2000; // ms between two looks at the children of a running job

    // The numbers are those of girder_worker. Where its plugin is there too, either may
    // come first: both say the same.
    const STATUSES = {
        DASK_FETCHING_INPUT: {
            value: 820, text: 'Fetching input', icon: 'icon-download', color: '#89d2e2'
        },
        DASK_CONVERTING_INPUT: {
            value: 821, text: 'Converting input', icon: 'icon-shuffle', color: '#92f5b5'
        },
        DASK_CONVERTING_OUTPUT: {
            value: 822, text: 'Converting output', icon: 'icon-shuffle', color: '#92f5b5'
        },
        DASK_PUSHING_OUTPUT: {
            value: 823, text: 'Pushing output', icon: 'icon-upload', color: '#89d2e2'
        },
        DASK_CANCELING: {
            value: 824, text: 'Canceling', icon: 'icon-spin3 animate-spin', color: '#f89406'
        }
    };

    girder.events.on('g:appload.before', () => {
        const jobs = girder.plugins.jobs;
        if (!jobs || !jobs.JobStatus) {
            return;
        }
        const JobStatus = jobs.JobStatus;
        JobStatus.registerStatus(STATUSES);
        const isCancelable = JobStatus.isCancelable;
        JobStatus.isCancelable = function (job) {
            if (job.get('handler') !== 'dask_handler') {
                return isCancelable.call(JobStatus, job);
            }
            return ![
                JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED, JobStatus.DASK_CANCELING
            ].includes(job.get('status'));
        };
        if (jobs.views && jobs.views.JobDetailsWidget) {
            const page = jobs.views.JobDetailsWidget.prototype;
            const initialize = page.initialize;
            page.initialize = function (...args) {
                initialize.apply(this, args);
                if (this.job.get('handler') === 'dask_handler') {
                    followLog(this);
                    followProgress(this);
                }
            };
            const render = page.render;
            page.render = function (...args) {
                render.apply(this, args);
                showWait(this);
                if (this.job.get('handler') === 'dask_handler') {
                    showProgress(this);
                    showParent(this);
                    showChildren(this);
                }
                showArtifacts(this);
                return this;
            };
        }
    });

    const { restRequest } = girder.rest;

    /*
     * Adds to the log what is heard of it, once. What was fetched may hold it already, or there
     * may be a gap: each notice says from which size of the log to which its text goes.
     */
    function followLog(page) {
        const { eventStream } = girder.utilities;
        const size = () => (page.job.get('dask') || {}).log_bytes || 0;
        let shown = size();
        let heard = shown;
        let fetching = false;

        function fetch() {
            const goal = heard;
            fetching = true;
            page.job.fetch().always(() => {
                fetching = false;
            }).done(() => {
                page.render();
                if (heard > goal && heard > shown) {
                    fetch(); // more was heard of it meanwhile
                }
            });
        }

        page.listenTo(page.job, 'g:fetched', () => {
            shown = size();
        });
        page.stopListening(eventStream, 'g:event.job_log');
        page.listenTo(eventStream, 'g:event.job_log', ({ data }) => {
            if (data._id !== page.job.id) {
                return;
            }
            const [from, to] = data.sizes || [shown, shown];
            heard = Math.max(heard, to);
            if (data.sizes && to <= shown) {
                return;
            }
            if (from !== shown) {
                if (!fetching) {
                    fetch();
                }
                return;
            }
            shown = to;
            page.job.set('log', [...(page.job.get('log') || []), data.text]);
            const box = page.$('.g-job-log-container');
            if (box.length) {
                box.append(document.createTextNode(data.text));
            } else {
                page.render();
            }
        });
    }

    /* Says beside the state of a job in the queue why it waits, if it does not for its turn. */
    function showWait(page) {
        const reason = waitsFor(page.job.get('dask') || {});
        if (reason && page.job.get('status') === girder.plugins.jobs.JobStatus.QUEUED) {
            const note = document.createElement('span');
            note.className = 'g-dask-waits';
            note.textContent = ` Waiting: ${reason}.`;
            page.$('.g-job-status-badge').after(note);
        }
    }

    /* Returns why a queued job waits, as girder_dask.jobs.waits_for does. */
    function waitsFor({ not_before: notBefore, waits }) {
        const moment = notBefore ? new Date(notBefore) : null;
        if (moment && moment > new Date()) {
            return `it is to start at ${moment.toISOString().slice(0, 19).replace('T', ' ')} UTC`;
        }
        return waits;
    }

    /* Draws the progress of a job below its state: the bar is that of Bootstrap. */
    function showProgress(page) {
        page.$('.g-dask-progress').remove();
        const { total, current, message } = page.job.get('progress') || {};
        if (!(total > 0)) {
            return;
        }
        const percent = Math.round(100 * Math.min(1, Math.max(0, current / total)));
        const bar = make('div', 'progress-bar', `${percent}%`);
        bar.setAttribute('role', 'progressbar');
        bar.setAttribute('aria-valuenow', percent);
        bar.style.width = `${percent}%`;
        bar.style.minWidth = '3em';
        const frame = make('div', 'progress');
        frame.style.marginBottom = '0';
        frame.append(bar);
        const box = make('div', 'g-field-container g-dask-progress');
        box.append(make('div', 'g-job-info-key', 'Progress:'), frame, message || '');
        page.$('.g-job-status-badge').closest('.g-field-container').after(box);
    }

    /* Moves the bar when the job or one of its children says how far it is. */
    function followProgress(page) {
        const refresh = girder._.throttle(() => showChildren(page), CHILDREN_INTERVAL);
        page.listenTo(girder.utilities.eventStream, 'g:event.progress', ({ data }) => {
            if (((data || {}).resource || {})._id === page.job.id) {
                const { total, current, message } = data;
                page.job.set('progress', { total, current, message });
                showProgress(page);
                refresh();
            }
        });
    }

    /* Links the job that has started this one. */
    function showParent(page) {
        const id = page.job.get('parentId');
        if (!id) {
            return;
        }
        const link = linkTo({ _id: id, title: id });
        const box = make('div', 'g-field-container g-dask-parent');
        box.append(make('div', 'g-job-info-key inline', 'Parent job: '), ' ', link);
        page.$('.g-job-status-badge').closest('.g-field-container').before(box);
        restRequest({ url: `job/${id}`, error: null }).done((parent) => {
            link.textContent = parent.title;
        });
    }

    /* Lists the first of the jobs that this one has started, and says how many more there are. */
    function showChildren(page) {
        const owner = page.job.get('userId'); // shown to site administrators alone
        restRequest({
            url: 'job',
            data: {
                parentId: page.job.id,
                limit: MOST_CHILDREN + 1,
                sort: '_id',
                sortdir: 1,
                ...(owner ? { userId: owner } : {})
            },
            error: null // only who administers the job may list its children
        }).done((children) => {
            page.$('.g-dask-children').remove();
            if (!children.length) {
                return;
            }
            const list = make('ul');
            for (const child of children.slice(0, MOST_CHILDREN)) {
                const state = girder.plugins.jobs.JobStatus.text(child.status);
                const entry = make('li');
                entry.append(linkTo(child), ` ${state}`);
                list.append(entry);
            }
            const { total } = (page.job.get('dask') || {}).group || {};
            if (children.length > MOST_CHILDREN) {
                const left = total ? (total - MOST_CHILDREN).toLocaleString() : '';
                list.append(make('li', '', `and ${left} more`.replace('  ', ' ')));
            }
            const box = make('div', 'g-dask-children');
            box.append(make('div', 'g-job-info-key', 'Child jobs:'), list);
            page.$('.g-job-status-badge').closest('.g-field-container').after(box);
            page.$('.g-dask-progress').after(box);
        });
    }

    function make(tag, className = '', text = '') {
        const element = document.createElement(tag);
        element.className = className;
        element.textContent = text;
        return element;
    }

    function linkTo(job) {
        const link = make('a', '', job.title);
        link.href = `#job/${encodeURIComponent(job._id)}`;
        return link;
    }

    /* Lists the files that a job has left below the rest of its page, if there are any. */
    function showArtifacts(page) {
        restRequest({
            method: 'GET', url: `job/${page.job.id}/artifact`, error: null
        }).done((artifacts) => {
            page.$('.g-dask-artifacts').remove();
            if (!artifacts.length) {
                return;
            }
            const list = document.createElement('ul');
            for (const artifact of artifacts) {
                const link = document.createElement('a');
                const name = artifact.name.split('/').map(encodeURIComponent).join('/');
                link.href = `${girder.rest.getApiRoot()}/job/${page.job.id}/artifact/${name}`;
                link.textContent = artifact.name;
                const entry = document.createElement('li');
                entry.append(link, ` (${artifact.size.toLocaleString()} bytes)`);
                list.append(entry);
            }
            const title = document.createElement('div');
            title.className = 'g-job-info-key';
            title.textContent = 'Artifacts:';
            const box = document.createElement('div');
            box.className = 'g-dask-artifacts';
            box.append(title, list);
            page.$el.append(box);
        });
    }

    const KEYS = [
        'dask.scheduler_address', 'dask.api_url', 'dask.direct_path', 'dask.submitters',
        'dask.allow_tasks', 'dask.max_priority'
    ];

    const FORM = `
      <div class="g-config-breadcrumb-container"></div>
      <p>Where jobs run, and how they reach this Girder.</p>
      <form id="g-dask-settings-form" role="form">
        <div class="form-group">
          <label class="control-label" for="g-dask-scheduler-address">Dask scheduler</label>
          <input class="input-sm form-control" id="g-dask-scheduler-address" type="text"
                 placeholder="tcp://dask.example.org:8786"/>
        </div>
        <div class="form-group">
          <label class="control-label" for="g-dask-api-url">Girder API URL for workers</label>
          <input class="input-sm form-control" id="g-dask-api-url" type="text"
                 placeholder="API URL (default: the scheduler's, or below core.server_root)"/>
        </div>
        <div class="checkbox">
          <label class="control-label" for="g-dask-direct-path">
            <input id="g-dask-direct-path" type="checkbox"/>
            <span>Workers that see Girder's file system read its files in place</span>
          </label>
        </div>
        <div class="form-group">
          <label class="control-label" for="g-dask-submitters">
            Group whose members may run code of their own on the cluster
          </label>
          <input class="input-sm form-control" id="g-dask-submitters" type="text"
                 placeholder="Id of a group (default: site administrators alone)"/>
        </div>
        <div class="form-group">
          <label class="control-label" for="g-dask-allow-tasks">
            Installed tasks that other users may start from notebooks
          </label>
          <input class="input-sm form-control" id="g-dask-allow-tasks" type="text"
                 placeholder='false, true, or patterns: ["my_package.*:segment"]'/>
        </div>
        <div class="form-group">
          <label class="control-label" for="g-dask-max-priority">
            Highest priority of calls of users who may not run code of their own
          </label>
          <input class="input-sm form-control" id="g-dask-max-priority" type="text"
                 placeholder="0"/>
        </div>
        <p class="g-validation-failed-message" id="g-dask-settings-error-message"></p>
        <input class="btn btn-sm btn-primary" type="submit" value="Save"/>
      </form>`;

    /* What is no JSON goes to Girder as it is, which says what is wrong with it. */
    function read(text) {
        try {
            return JSON.parse(text);
        } catch (e) {
            return text;
        }
    }

    const ConfigView = girder.views.View.extend({
        events: {
            'submit #g-dask-settings-form': function (e) {
                e.preventDefault();
                this._save();
            }
        },

        initialize: function () {
            restRequest({
                method: 'GET', url: 'system/setting', data: { list: JSON.stringify(KEYS) }
            }).done((values) => {
                this.render();
                this.$('#g-dask-scheduler-address').val(values['dask.scheduler_address']);
                this.$('#g-dask-api-url').val(values['dask.api_url']);
                this.$('#g-dask-direct-path').prop('checked', values['dask.direct_path']);
                this.$('#g-dask-submitters').val(values['dask.submitters']);
                this.$('#g-dask-allow-tasks').val(JSON.stringify(values['dask.allow_tasks']));
                this.$('#g-dask-max-priority').val(values['dask.max_priority']);
            });
        },

        render: function () {
            this.$el.html(FORM);
            new girder.views.widgets.PluginConfigBreadcrumbWidget({
                pluginName: 'Dask',
                el: this.$('.g-config-breadcrumb-container'),
                parentView: this
            }).render();
            return this;
        },

        _save: function () {
            this.$('#g-dask-settings-error-message').empty();
            const list = [
                { key: KEYS[0], value: this.$('#g-dask-scheduler-address').val().trim() },
                { key: KEYS[1], value: this.$('#g-dask-api-url').val().trim() },
                { key: KEYS[2], value: this.$('#g-dask-direct-path').is(':checked') },
                { key: KEYS[3], value: this.$('#g-dask-submitters').val().trim() },
                { key: KEYS[4], value: read(this.$('#g-dask-allow-tasks').val().trim()) },
                { key: KEYS[5], value: read(this.$('#g-dask-max-priority').val().trim()) }
            ];
            restRequest({
                method: 'PUT', url: 'system/setting', data: { list: JSON.stringify(list) },
                error: null
            }).done(() => {
                girder.events.trigger('g:alert', {
                    icon: 'ok', text: 'Settings saved.', type: 'success', timeout: 4000
                });
            }).fail((response) => {
                this.$('#g-dask-settings-error-message').text(response.responseJSON.message);
            });
        }
    });

    girder.utilities.PluginUtils.exposePluginConfig('dask', 'plugins/dask/config');
    girder.router.route('plugins/dask/config', 'daskConfig', function () {
        girder.events.trigger('g:navigateTo', ConfigView);
    });
})();
